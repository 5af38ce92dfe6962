"""GRPO's advantage, with Dr. GRPO's as an option."""

from __future__ import annotations

from typing import Literal

from jsonargparse.typing import NonNegativeFloat
from torch import Tensor

from refine_pl.advantages.base import AdvantageEstimator, GroupBy
from refine_pl.advantages.groups import group


class GroupRelative(AdvantageEstimator):
    """A = (R - mean) / (std + eps) over the group; std divides by (members - ddof).

    The paper's advantage (GRPO): ``ddof`` 1 and ``eps`` 1e-6. A group of one, or of equal rewards,
    gives exactly 0.

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
        """``[B, S, N]`` float32; arguments as in :meth:`AdvantageEstimator.estimate`."""
        groups = group(rewards, valid, self.group_by)
        advantages = groups.rewards - groups.mean()
        if self.normalize_std:
            advantages = advantages / (groups.std(self.ddof) + self.eps)
        return groups.where_rewards_differ(advantages)
