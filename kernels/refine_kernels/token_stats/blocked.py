"""Statistics of next-token distributions, in blocks of tokens, logits recomputed in the backward.

No tensor has more than ``BLOCK_ELEMENTS`` logits (or one token's, if that is more), whatever the
number of tokens and the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}


def _blocks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    budget = BLOCK_ELEMENTS.get(hidden.device.type, BLOCK_ELEMENTS["cuda"])
    size = max(1, budget // weight.shape[0])
    for start in range(0, hidden.shape[0], size):
        yield slice(start, min(start + size, hidden.shape[0]))


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class BlockedTokenStats(torch.autograd.Function):
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
        dtype = _accumulator(operand_dtype)
        rows = hidden.shape[0]
        operand = weight.to(operand_dtype)
        log_sum = hidden.new_empty(rows, dtype=dtype)
        logprob = None if targets is None else hidden.new_empty(rows, dtype=dtype)
        entropies = hidden.new_empty(rows, dtype=dtype) if entropy else None
        hits = hidden.new_empty(rows, dtype=torch.bool) if correct else None
        for here in _blocks(hidden, weight):
            logits = (hidden[here].to(operand_dtype) @ operand.t()).to(dtype)
            largest, best = logits.max(-1, keepdim=True)
            logits -= largest
            if logprob is not None and targets is not None:
                picked = logits.gather(-1, targets[here].clamp(min=0)[:, None])[:, 0]
            if entropies is not None:
                exp = logits.exp()
                total = exp.sum(-1)
                entropies[here] = total.log() - torch.linalg.vecdot(exp, logits) / total
            else:
                total = logits.exp_().sum(-1)
            log_total = total.log()
            log_sum[here] = log_total + largest[:, 0]
            if logprob is not None and targets is not None:
                logprob[here] = (picked - log_total).masked_fill_(targets[here] < 0, 0)
            if hits is not None and targets is not None:
                hits[here] = best[:, 0] == targets[here]
        ctx.save_for_backward(hidden, weight, targets, log_sum, entropies)
        ctx.operand_dtype = operand_dtype
        ctx.set_materialize_grads(False)
        if hits is not None:
            ctx.mark_non_differentiable(hits)
        return logprob, entropies, hits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of hidden and weight."""
        d_logprob, d_entropy, _ = grads
        hidden, weight, targets, log_sum, entropies = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        if d_logprob is None and d_entropy is None:
            return None, None, None, None, None, None
        counted = None  # the gradient of the log-probabilities that count
        if d_logprob is not None:
            counted = d_logprob.masked_fill(targets < 0, 0)[:, None]
        dtype = log_sum.dtype
        operand = weight.to(ctx.operand_dtype)
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = torch.zeros_like(weight, dtype=dtype) if needs_weight else None
        for here in _blocks(hidden, weight):
            block = hidden[here].to(ctx.operand_dtype)
            logprobs = (block @ operand.t()).to(dtype)
            logprobs -= log_sum[here, None]
            d_logits = logprobs.exp()
            if d_entropy is not None:
                slope = logprobs.add_(entropies[here, None]).mul_(d_entropy[here, None])
                if counted is not None:
                    slope += counted[here]
                d_logits.mul_(slope).neg_()
            elif counted is not None:
                d_logits.mul_(-counted[here])
            if counted is not None:
                d_logits.scatter_add_(-1, targets[here].clamp(min=0)[:, None], counted[here])
            d_operand = d_logits.to(ctx.operand_dtype)
            if d_hidden is not None:
                d_hidden[here] = (d_operand @ operand).to(hidden.dtype)
            if d_weight is not None:
                d_weight += d_operand.t() @ block
        if d_weight is not None:
            d_weight = d_weight.to(weight.dtype)
        return d_hidden, d_weight, None, None, None, None
