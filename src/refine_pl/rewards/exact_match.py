"""How many tokens are the true ones."""

from __future__ import annotations

from torch import Tensor

from refine_pl.records import Rollouts
from refine_pl.rewards.base import Reward


class ExactMatch(Reward):
    """R = (number of rollout tokens that equal the target token at their place) / L, in [0, 1].

    Args:
        weight: what the reward is multiplied by in the sum; 0 turns it off.
    """

    def score(self, rollouts: Rollouts) -> Tensor:
        """``[B, S, N]`` float32."""
        return (rollouts.tokens == rollouts.targets.unsqueeze(2)).float().mean(dim=-1)
