"""GRPO's advantage, with Dr. GRPO's as an option."""

from __future__ import annotations

from typing import Literal

from jsonargparse.typing import NonNegativeFloat
from torch import Tensor

from refine_pl.advantages.base import AdvantageEstimator, GroupBy
from refine_pl.advantages.groups import group


def group_relative(
    rewards: Tensor,
    valid: Tensor,
    group_by: GroupBy = "auto",
    normalize_std: bool = True,
    ddof: Literal[0, 1] = 1,
    eps: float = 1e-6,
) -> Tensor:
    """``(R - mean) / (std + eps)`` over the valid members of each group.

    Args:
        rewards: ``[B, S, N]``; what it holds where not valid is not read.
        valid: ``[B, S]`` bool.
        group_by: see :func:`refine_pl.advantages.groups.group`.
        normalize_std: divide by ``std + eps``; without it this is Dr. GRPO's.
        ddof: the variance divides by (members - ddof).
        eps: in the unit of the rewards.

    Returns:
        ``[B, S, N]`` float32. Exactly 0 where not valid, in a group of one, and among equals.
    """
    groups = group(rewards, valid, group_by)
    advantages = groups.rewards - groups.mean()
    if normalize_std:
        advantages = advantages / (groups.std(ddof) + eps)
    counts = groups.member & ~groups.zero_spread
    return advantages.where(counts, 0.0).float()


class GroupRelative(AdvantageEstimator):
    """A = (R - mean) / (std + eps) over the group; std divides by (members - ddof).

    The paper's advantage (GRPO): ``ddof`` 1 and ``eps`` 1e-6. A group of one, or of equal rewards,
    gives 0.

    Args:
        group_by: ``position`` compares the N rollouts of one position, ``sequence`` all rollouts of
            one sequence; ``auto`` is ``sequence`` for N = 1 and ``position`` otherwise.
        normalize_std: divide by the standard deviation; false is Dr. GRPO, A = R - mean.
        ddof: 1 for the unbiased standard deviation, 0 for that of the group itself.
        eps: safety of the division, in the unit of the rewards.
    """

    def __init__(
        self,
        group_by: GroupBy = "auto",
        normalize_std: bool = True,
        ddof: Literal[0, 1] = 1,
        eps: NonNegativeFloat = 1e-6,
    ) -> None:
        super().__init__(group_by)
        self.normalize_std = normalize_std
        self.ddof = ddof
        self.eps = eps

    def estimate(self, rewards: Tensor, valid: Tensor) -> Tensor:
        """Advantages of ``rewards [B, S, N]`` float32 where ``valid [B, S]``; 0 elsewhere."""
        return group_relative(
            rewards, valid, self.group_by, self.normalize_std, self.ddof, self.eps
        )
