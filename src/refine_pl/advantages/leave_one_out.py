"""RLOO's advantage: a baseline that a rollout has no part in."""

from __future__ import annotations

from torch import Tensor

from refine_pl.advantages.base import AdvantageEstimator
from refine_pl.advantages.groups import group


class LeaveOneOut(AdvantageEstimator):
    """A_i = R_i - mean of the rewards of the others in the group.

    RLOO: the baseline does not depend on the rollout that it judges. It equals n / (n - 1) times
    ``R - mean``. A group of one, or of equal rewards, gives exactly 0. Arguments as in
    :class:`AdvantageEstimator`.
    """

    def estimate(self, rewards: Tensor, valid: Tensor) -> Tensor:
        """``[B, S, N]`` float32; arguments as in :meth:`AdvantageEstimator.estimate`."""
        groups = group(rewards, valid, self.group_by)
        others = (groups.total - groups.rewards) / (groups.num_members - 1).clamp_min(1)
        return groups.where_rewards_differ(groups.rewards - others)
