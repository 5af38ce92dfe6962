"""Random inputs of policy losses."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_inputs(
    shape: tuple[int, int, int, int] = (2, 3, 4, 5),
    dtype: torch.dtype = torch.float64,
    spread: float = 1.5,
    seed: int = 3,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities now and then, advantages, and a mask of rollouts of unequal length.

    Args:
        shape: ``[B, S, N, L]``.
        dtype: of the first three.
        spread: nats, of the log ratio: at 1.5 ratios lie far outside the clip too.
        seed: of the numbers.

    Returns:
        What a policy loss is called with. Where there is more than one rollout, one has no token.
    """
    generator = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(shape, generator=generator, dtype=dtype)
    new = old + spread * torch.randn(shape, generator=generator, dtype=dtype)
    advantages = torch.randn(*shape[:3], 1, generator=generator, dtype=dtype)
    lengths = torch.randint(1, shape[3] + 1, shape[:3], generator=generator)
    if lengths.numel() > 1:
        lengths.view(-1)[1] = 0
    return new, old, advantages, torch.arange(shape[3]) < lengths[..., None]
