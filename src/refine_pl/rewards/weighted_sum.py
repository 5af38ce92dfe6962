"""Several named rewards as one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from refine_pl.errors import ConfigError
from refine_pl.faults import (
    PartError,
    blame,
    check_is_made,
    copied,
    describe_tensor,
    fault,
    is_plain_float,
)
from refine_pl.records import Rollouts
from refine_pl.rewards.base import OnError, Reward


class WeightedSum(Reward):
    """R = sum over the named rewards of weight * R_name.

    A reward of weight 0 is not computed. Whatever a reward returns is checked, because users write
    their own.

    Args:
        rewards: the rewards by name; each brings its own weight. The names appear in the log.
        weight: of the whole sum, where it is itself a part of another one.
        on_error: of the whole sum, likewise.

    Attributes:
        faults: by name, how often each reward was counted as 0 (``on_error: zero``) in the last
            call.

    Raises:
        ConfigError: if there is no reward, if every weight is 0, or if a weight is not a number.
    """

    def __init__(
        self, rewards: Mapping[str, Reward], weight: float = 1.0, on_error: OnError = "stop"
    ) -> None:
        super().__init__(weight, on_error)
        self.faults: dict[str, int] = {}
        self._warned: set[str] = set()
        for name, reward in rewards.items():
            if not isinstance(reward, Reward):
                raise ConfigError(
                    f"reward '{name}' is a {type(reward).__name__}",
                    allowed="a subclass of refine_pl.rewards.Reward",
                )
            check_is_made(f"model.rewards.{name}", reward)
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
            PartError: if a reward raises, or returns something other than finite numbers, one per
                rollout, and its ``on_error`` is ``stop``; or if the sum is not finite.
        """
        total = torch.zeros(rollouts.tokens.shape[:3], device=rollouts.tokens.device)
        parts = {}
        self.faults = dict.fromkeys(self.parts(), 0)
        for name, reward in self.parts().items():
            try:
                parts[name] = _score(name, reward, rollouts)
            except PartError as error:
                if reward.on_error == "stop":
                    raise
                parts[name] = torch.zeros_like(total)
                self.faults[name] = 1
                self._say_once(name, error)
            total += reward.weight * parts[name]
        if not bool(total.isfinite().all()):
            sizes = ", ".join(f"{n}: up to {float(v.abs().max()):.3g}" for n, v in parts.items())
            raise PartError(
                "the weighted sum of the rewards is too large for float32",
                where="model.rewards",
                allowed=f"finite numbers ({sizes})",
                way_out="smaller rewards or weights",
            )
        return total, parts

    def _say_once(self, name: str, error: PartError) -> None:
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(f"{error}\n  It counts as 0 here (on_error: zero).", stacklevel=3)


def _score(name: str, reward: Reward, rollouts: Rollouts) -> Tensor:
    """What a reward returns for copies of the tensors, checked.

    The copies cost little: at the published size of 1.3B parameters the tensors of a sequence have
    0.7 MB (8 positions, 1 rollout of 5 tokens, width 2,048, float32), 3 MB with 8 rollouts each.
    """
    key, label = f"model.rewards.{name}", f"reward '{name}'"
    with blame(key, reward, always=True, label=label):
        return _checked(reward.score(copied(rollouts)), name, reward, rollouts)


def _checked(score: Any, name: str, reward: Reward, rollouts: Rollouts) -> Tensor:
    """``score`` as ``[B, S, N]`` float32, 0 where not valid; or an error that says what it was."""
    shape = tuple(rollouts.tokens.shape[:3])
    if not is_plain_float(score, shape):
        came = describe_tensor(score)
    else:
        score = score.detach().to(rollouts.tokens.device, torch.float32)
        score = score.where(rollouts.valid.unsqueeze(-1), 0.0)
        bad = ~score.isfinite()
        if not bad.any():
            return score
        first = tuple(bad.nonzero()[0].tolist())
        came = f"{int(bad.sum())} non-finite values, the first at {first}: {score[first]}"
    raise fault(
        f"model.rewards.{name}",
        reward,
        f"returned {came}",
        f"a floating-point tensor of shape [B, S, N] = {list(shape)}, finite wherever "
        "rollouts.valid",
        f"reward '{name}'",
    )
