"""What every position selector shares: the candidates, the segments and the smoothing."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from refine_pl.randomness import RowRandom
from refine_pl.records import Positions, RolloutPlan


class PositionSelector(nn.Module, ABC):
    """Chooses where rollouts start.

    Args:
        min_prefix: tokens that must lie before a position.
        min_suffix: tokens that must lie at and after a position.
        offset: 0 when the first rollout token is the one whose entropy was scored (the released
            code); 1 starts one token later (paper, Eq. 5).
    """

    def __init__(
        self,
        min_prefix: PositiveInt = 20,
        min_suffix: PositiveInt = 20,
        offset: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.min_prefix = min_prefix
        self.min_suffix = min_suffix
        self.offset = offset

    @abstractmethod
    def select(
        self, entropy: Tensor, num_tokens: Tensor, plan: RolloutPlan, generator: RowRandom
    ) -> Positions:
        """Choose positions.

        Args:
            entropy: ``[B, T]`` nats; ``entropy[b, t]`` is that of the token after ``x[0..t]``.
            num_tokens: ``[B]`` real tokens of each row.
            plan: how many segments, and the rollout length in tokens.
            generator: the rows' random streams.

        Returns:
            Positions ``[B, S]``, in ascending order within a row.
        """
