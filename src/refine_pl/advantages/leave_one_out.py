"""RLOO's advantage: a baseline that a rollout has no part in."""

from __future__ import annotations

from torch import Tensor

from refine_pl.advantages.base import AdvantageEstimator, GroupBy
from refine_pl.advantages.groups import group


def leave_one_out(rewards: Tensor, valid: Tensor, group_by: GroupBy = "auto") -> Tensor:
    """``R_i`` minus the mean of the other valid members of its group.

    Args:
        rewards: ``[B, S, N]``; what it holds where not valid is not read.
        valid: ``[B, S]`` bool.
        group_by: see :func:`refine_pl.advantages.groups.group`.

    Returns:
        ``[B, S, N]`` float32. Exactly 0 where not valid, in a group of one, and among equals.
    """
    groups = group(rewards, valid, group_by)
    others = (groups.total - groups.rewards) / (groups.num_members - 1).clamp_min(1)
    advantages = groups.rewards - others
    counts = groups.member & ~groups.zero_spread
    return advantages.where(counts, 0.0).float()


class LeaveOneOut(AdvantageEstimator):
    """A_i = R_i - mean of the rewards of the others in the group.

    RLOO: the baseline does not depend on the rollout that it judges. It equals n / (n - 1) times
    ``R - mean``. A group of one gives 0. Arguments as in :class:`AdvantageEstimator`.
    """

    def estimate(self, rewards: Tensor, valid: Tensor) -> Tensor:
        """Advantages of ``rewards [B, S, N]`` float32 where ``valid [B, S]``; 0 elsewhere."""
        return leave_one_out(rewards, valid, self.group_by)
