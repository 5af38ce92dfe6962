"""Positions where the next tokens are uncertain."""

from __future__ import annotations

import torch
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from refine_pl.randomness import RowRandom
from refine_pl.records import Positions, RolloutPlan
from refine_pl.selectors.base import PositionSelector


class Entropy(PositionSelector):
    """P(position) = softmax(smoothed entropy / selection_temperature) over a segment's candidates.

    The paper's selector (section 3, Eq. 5): one position per segment. The candidates are restricted
    before the softmax.

    Args:
        selection_temperature: nats; small values prefer the most uncertain candidate, large ones
            draw evenly.
        min_prefix: tokens that must lie before a position.
        min_suffix: tokens that must lie at and after a position.
        offset: 0 when the first rollout token is the one whose entropy was scored (the released
            code); 1 starts one token later (paper, Eq. 5).
    """

    def __init__(
        self,
        selection_temperature: PositiveFloat = 1.0,
        min_prefix: PositiveInt = 20,
        min_suffix: PositiveInt = 20,
        offset: NonNegativeInt = 0,
    ) -> None:
        super().__init__(min_prefix, min_suffix, offset)
        self.selection_temperature = selection_temperature

    def select(
        self, entropy: Tensor, num_tokens: Tensor, plan: RolloutPlan, generator: RowRandom
    ) -> Positions:
        """One position per segment; arguments as in :meth:`PositionSelector.select`."""
        candidates = self.candidates(entropy, num_tokens, plan)
        score = candidates.score.masked_fill(~candidates.legal, -torch.inf)
        largest = score.amax(dim=-1, keepdim=True)
        weight = ((score - largest) / self.selection_temperature).exp()
        return candidates.draw(weight, generator)
