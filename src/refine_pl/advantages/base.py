"""An advantage says how much better a rollout was than those it is compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

GroupBy = Literal["sequence", "position", "auto"]


class AdvantageEstimator(nn.Module, ABC):
    """Compares the rewards of a group.

    Args:
        group_by: ``position`` compares the N rollouts of one position, ``sequence`` all rollouts of
            one sequence; ``auto`` is ``sequence`` for N = 1 and ``position`` otherwise.
    """

    def __init__(self, group_by: GroupBy = "auto") -> None:
        super().__init__()
        self.group_by = group_by

    @abstractmethod
    def estimate(self, rewards: Tensor, valid: Tensor) -> Tensor:
        """How much better each rollout was: ``[B, S, N]`` float32.

        Args:
            rewards: ``[B, S, N]`` float32; what it holds where not valid is not read.
            valid: ``[B, S]`` bool; the advantage is 0 elsewhere.
        """
