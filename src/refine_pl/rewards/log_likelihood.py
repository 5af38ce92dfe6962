"""How likely the true text is along the rollout."""

from __future__ import annotations

from torch import Tensor

from refine_pl.records import Rollouts
from refine_pl.rewards.base import OnError, Reward


class LogLikelihood(Reward):
    """R = mean over the L tokens of log p(target token | prefix, rollout tokens before it), nats.

    At most 0. It comes free with the rollout's logits.

    Args:
        exp: return exp(R), the geometric mean of the probabilities, in [0, 1].
        weight: what the reward is multiplied by in the sum; 0 turns it off.
        on_error: as in :class:`Reward`.
    """

    def __init__(self, exp: bool = False, weight: float = 1.0, on_error: OnError = "stop") -> None:
        super().__init__(weight, on_error)
        self.exp = exp

    def score(self, rollouts: Rollouts) -> Tensor:
        """``[B, S, N]`` float32."""
        mean = rollouts.target_logprobs.detach().float().mean(dim=-1)
        return mean.exp() if self.exp else mean
