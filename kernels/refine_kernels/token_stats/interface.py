"""Log-probability, entropy and accuracy of next tokens, without storing their logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from refine_kernels.backends import OwnBackend, not_for_products, takes_triton
from refine_kernels.records import check_shapes
from refine_kernels.token_stats.blocked import BlockedTokenStats
from refine_kernels.token_stats.kernel_op import TritonTokenStats

_EMPTY = torch.empty(0)


class TokenStats(NamedTuple):
    """Statistics of ``M`` next-token distributions; what was not asked for is empty."""

    logprob: Tensor = _EMPTY  # [M] of the target, nats; 0 where the target is negative
    entropy: Tensor = _EMPTY  # [M] nats
    correct: Tensor = _EMPTY  # [M] bool, the target is the most likely token
    logits: Tensor = _EMPTY  # [M, vocab_size]


def token_stats(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor | None = None,
    *,
    entropy: bool = False,
    correct: bool = False,
    backend: OwnBackend = "auto",
) -> TokenStats:
    """Statistics of ``softmax(hidden @ weight^T)``, differentiable in hidden and weight.

    Args:
        hidden: ``[M, D]``.
        weight: ``[vocab_size, D]``.
        targets: ``[M]`` int64; negative ones do not count.
        entropy: compute the entropies.
        correct: compare the targets with the most likely tokens.
        backend: ``auto`` takes Triton kernels on CUDA where products are in 16 bits, else torch.

    Returns:
        Float32 statistics (float64 for float64 inputs). Matrix products run in the type of an
        enclosing autocast.

    Raises:
        ValueError: shapes that do not fit, ``correct`` without targets, or a backend that cannot
            run.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must be [M, D] and "
            "[vocab_size, D]"
        )
    check_shapes(targets=(targets, (len(hidden),)))
    if correct and targets is None:
        raise ValueError("correct=True needs targets")
    kind = hidden.device.type
    autocast = torch.is_autocast_enabled(kind)
    operand_dtype = torch.get_autocast_dtype(kind) if autocast else hidden.dtype
    unfit = not_for_products(operand_dtype)
    by_triton = takes_triton("token_stats", backend, hidden.device, unfit)
    op = TritonTokenStats if by_triton else BlockedTokenStats
    with torch.autocast(kind, enabled=False):
        parts = op.apply(hidden, weight, targets, entropy, correct, operand_dtype)
    return TokenStats(*(_EMPTY if part is None else part for part in parts))
