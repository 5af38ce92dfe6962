"""A reward turns each rollout into one number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from refine_pl.errors import ConfigError, check_choice
from refine_pl.records import Rollouts

OnError = Literal["stop", "zero"]


class Reward(nn.Module, ABC):
    """Scores rollouts against the true text.

    A reward of your own is a subclass with one method, :meth:`score`, in a file of the folder you
    start ``refine-pl`` from; name it in YAML as ``class_path: my_rewards.MyReward``.

    Args:
        weight: what the reward is multiplied by in the sum; 0 turns it off.
        on_error: what happens when it raises, or returns something else than finite numbers:
            ``stop`` saves the run and ends it; ``zero`` counts the reward as 0 for that batch.
    """

    on_error: OnError = "stop"

    code_arguments: ClassVar[tuple[str, ...]] = ()
    """Arguments that name code to be called. A checkpoint's are not used."""

    def __init__(self, weight: float = 1.0, on_error: OnError = "stop") -> None:
        super().__init__()
        check_choice(type(self).__name__, "on_error", on_error, get_args(OnError))
        self.weight = weight
        self.on_error = on_error
        self._tokenizer: Any = None

    @abstractmethod
    def score(self, rollouts: Rollouts) -> Tensor:
        """One number per rollout: ``[B, S, N]`` float32. No gradient flows through it.

        The tensors of ``rollouts`` are copies: what is done to them changes nothing.
        """

    @property
    def source(self) -> str:
        """Where its code is, for messages."""
        return f"{type(self).__module__}.{type(self).__qualname__}.score"

    def bind(self, tokenizer: Any) -> None:
        """Receive the tokenizer of the run, for :meth:`decode`. Called once before training."""
        self._tokenizer = tokenizer

    def decode(self, tokens: Tensor) -> list[str]:
        """The text of each row of ``tokens [M, L]``, for rewards that read text."""
        if self._tokenizer is None:
            raise ConfigError(
                f"{type(self).__name__} reads text, but no tokenizer was given to it",
                way_out="call reward.bind(tokenizer) first; `refine-pl fit` does it by itself",
            )
        return [self._tokenizer.decode(row) for row in tokens.tolist()]
