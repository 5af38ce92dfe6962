"""Several named rewards as one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from refine_pl.errors import ConfigError, UserError
from refine_pl.records import Rollouts
from refine_pl.rewards.base import Reward


class WeightedSum(Reward):
    """R = sum over the named rewards of weight * R_name.

    A reward of weight 0 is not computed. Whatever a reward returns is checked, because users write
    their own.

    Args:
        rewards: the rewards by name; each brings its own weight. The names appear in the log.
        weight: of the whole sum, where it is itself a part of another one.

    Raises:
        ConfigError: if there is no reward, if every weight is 0, or if a weight is not a number.
    """

    def __init__(self, rewards: Mapping[str, Reward], weight: float = 1.0) -> None:
        super().__init__(weight)
        for name, reward in rewards.items():
            if not isinstance(reward, Reward):
                raise ConfigError(
                    f"reward '{name}' is a {type(reward).__name__}",
                    allowed="a subclass of refine_pl.rewards.Reward",
                )
            if not math.isfinite(reward.weight):
                raise ConfigError(
                    f"reward '{name}' has weight {reward.weight}", allowed="a finite number"
                )
        if all(reward.weight == 0 for reward in rewards.values()):
            given = ", ".join(f"{name}: weight {r.weight}" for name, r in rewards.items())
            raise ConfigError(
                f"no reward is turned on (given: {given or 'none'})",
                allowed="at least one reward with a weight other than 0",
                way_out="give a reward a weight, or train with policy_weight 0 and no rollouts",
            )
        self.names = tuple(rewards)
        # A list, since a ModuleDict refuses names such as `items` or `my.reward`.
        self.rewards = nn.ModuleList(rewards.values())

    def parts(self) -> dict[str, Reward]:
        """The rewards that are turned on, by name."""
        pairs = zip(self.names, self.rewards, strict=True)
        return {n: r for n, r in pairs if isinstance(r, Reward) and r.weight != 0}

    def bind(self, tokenizer: Any) -> None:
        """Give the run's tokenizer to every reward."""
        super().bind(tokenizer)
        for reward in self.rewards:
            if isinstance(reward, Reward):
                reward.bind(tokenizer)

    def score(self, rollouts: Rollouts) -> Tensor:
        """The sum alone: ``[B, S, N]`` float32."""
        return self.score_parts(rollouts)[0]

    @torch.no_grad()
    def score_parts(self, rollouts: Rollouts) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum and its parts.

        Returns:
            The weighted sum ``[B, S, N]`` float32, and each reward before its weight, the same
            shape, by name. All are 0 where ``rollouts.valid`` is false.

        Raises:
            UserError: if a reward returns something other than finite numbers, one per rollout.
        """
        total = torch.zeros(rollouts.tokens.shape[:3], device=rollouts.tokens.device)
        parts = {}
        for name, reward in self.parts().items():
            parts[name] = _checked(reward.score(rollouts), name, reward, rollouts)
            total += reward.weight * parts[name]
        return total, parts


def _checked(score: Any, name: str, reward: Reward, rollouts: Rollouts) -> Tensor:
    """``score`` as ``[B, S, N]`` float32, 0 where not valid; or an error that says what it was."""
    shape = tuple(rollouts.tokens.shape[:3])
    if not isinstance(score, Tensor):
        came = f"a {type(score).__name__}"
    elif tuple(score.shape) != shape:
        came = f"a tensor of shape {list(score.shape)}"
    elif not score.is_floating_point():
        came = f"a tensor of {score.dtype}"
    else:
        score = score.detach().to(rollouts.tokens.device, torch.float32)
        score = score.where(rollouts.valid.unsqueeze(-1), 0.0)
        bad = ~score.isfinite()
        if not bad.any():
            return score
        first = tuple(bad.nonzero()[0].tolist())
        came = f"{int(bad.sum())} non-finite values, the first at {first}: {score[first]}"
    raise UserError(
        f"reward '{name}' returned {came}",
        where=reward.source,
        allowed=f"a floating-point tensor of shape [B, S, N] = {list(shape)}, finite wherever "
        "rollouts.valid",
    )
