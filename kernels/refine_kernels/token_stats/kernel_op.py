"""Token statistics by cuBLAS and this package's Triton kernels: one launch a block each way.

A block's logits are in the operands' type, and its gradient is written over them. There is one
buffer of ``BLOCK_ELEMENTS`` logits, whatever the number of tokens and the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine_kernels.launching import launch
from refine_kernels.power_of_two import power_of_two

# At 16 bits 128 MiB. Blocks of an eighth would stay in the cache of the GPU; but each block reads
# the head's weight again, and adds to all of its gradient, which costs more (see the README).
BLOCK_ELEMENTS = 2**26
_COLUMNS, _WARPS = 2048, 4  # of a tile; not timed on a GPU


def _blocks(rows: int, vocab_size: int) -> Iterator[slice]:
    size = max(1, BLOCK_ELEMENTS // vocab_size)
    if size > 128:  # whole tiles of the matrix product
        size -= size % 128
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


class _Block:
    """The buffer for the logits of any block. Its rows begin at multiples of 128 bytes."""

    def __init__(self, hidden: Tensor, operand: Tensor) -> None:
        self.vocab_size = operand.shape[0]
        self.stride = -(-self.vocab_size // 64) * 64
        rows = max(here.stop - here.start for here in _blocks(len(hidden), self.vocab_size))
        self.whole = operand.new_empty(rows, self.stride)

    def logits(self, block: Tensor, operand: Tensor) -> Tensor:
        """``[rows, vocab_size]``, over those of the last block."""
        logits = self.whole[: len(block), : self.vocab_size]
        return torch.mm(block, operand.t(), out=logits)

    def start(
        self, kernel: Any, here: slice, tiles: tuple[int, ...], flags: dict[str, bool],
        **by_name: Any,
    ) -> None:  # fmt: skip
        """One launch for the rows ``here``."""
        columns = min(_COLUMNS, power_of_two(self.vocab_size, 16))
        constants = {"V": self.vocab_size, "STRIDE": self.stride, "BV": columns, **flags}
        launch(
            kernel, (here.stop - here.start, *tiles),
            {"logits": self.whole, "start": here.start, **by_name}, constants,
            {"num_warps": _WARPS, "num_stages": 2},
        )  # fmt: skip


class TritonTokenStats(torch.autograd.Function):
    """Forward and backward. ``operand_dtype`` is that of the matrix products."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor | None,
        entropy: bool,
        correct: bool,
        operand_dtype: torch.dtype,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """``logprob [M]``, ``entropy [M]`` and ``correct [M]``, None where not asked for."""
        from refine_kernels.token_stats.kernels import statistics

        rows = hidden.shape[0]
        operand = weight.to(operand_dtype)
        if targets is not None:
            targets = targets.contiguous()

        def floats(wanted: bool) -> Tensor | None:
            return hidden.new_empty(rows, dtype=torch.float32) if wanted else None

        log_sum, logprob = floats(True), floats(targets is not None)
        entropies = floats(entropy)
        hits = hidden.new_empty(rows, dtype=torch.int8) if correct else None
        flags = {"TARGETS": targets is not None, "ENTROPY": entropy, "CORRECT": correct}
        if rows:
            buffer = _Block(hidden, operand)
        for here in _blocks(rows, len(operand)):
            buffer.logits(hidden[here].to(operand_dtype), operand)
            buffer.start(
                statistics, here, (), flags, targets=targets, log_sum=log_sum, logprob=logprob,
                entropy=entropies, correct=hits,
            )  # fmt: skip
        ctx.save_for_backward(hidden, weight, targets, log_sum, entropies)
        ctx.operand_dtype = operand_dtype
        ctx.set_materialize_grads(False)
        found = None if hits is None else hits.bool()
        if found is not None:
            ctx.mark_non_differentiable(found)
        return logprob, entropies, found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of hidden and weight."""
        from refine_kernels.token_stats.kernels import logits_back

        d_logprob, d_entropy = (None if d is None else d.contiguous() for d in grads[:2])
        hidden, weight, targets, log_sum, entropies = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        if d_logprob is None and d_entropy is None:
            return None, None, None, None, None, None
        rows = hidden.shape[0]
        operand = weight.to(ctx.operand_dtype)
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        flags = {"TARGETS": d_logprob is not None, "ENTROPY": d_entropy is not None}
        if rows:
            buffer = _Block(hidden, operand)
        for here in _blocks(rows, len(operand)):
            block = hidden[here].to(ctx.operand_dtype)
            d_logits = buffer.logits(block, operand)
            tiles = (-(-len(operand) // _COLUMNS),)
            buffer.start(
                logits_back, here, tiles, flags, targets=targets, log_sum=log_sum,
                entropy=entropies, d_logprob=d_logprob, d_entropy=d_entropy,
            )  # fmt: skip
            if d_hidden is not None:
                d_hidden[here] = (d_logits @ operand).to(hidden.dtype)
            if d_weight is not None:
                d_weight += d_logits.t() @ block
        if d_weight is not None:
            d_weight = d_weight.to(weight.dtype)
        return d_hidden, d_weight, None, None, None, None
