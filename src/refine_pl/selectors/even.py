"""Positions that divide a text evenly."""

from __future__ import annotations

from torch import Tensor

from refine_pl.randomness import RowRandom
from refine_pl.records import Positions, RolloutPlan
from refine_pl.selectors.base import PositionSelector


class Even(PositionSelector):
    """position = the middle candidate of each segment.

    The same for every model: neither the entropy nor random numbers are read. Validation starts its
    rollouts there. Arguments as in :class:`PositionSelector`.
    """

    def select(
        self, entropy: Tensor, num_tokens: Tensor, plan: RolloutPlan, generator: RowRandom
    ) -> Positions:
        """One position per segment; arguments as in :meth:`PositionSelector.select`."""
        candidates = self.candidates(entropy, num_tokens, plan)
        # The candidates of a segment lie side by side: from the first one to the middle of them.
        first = candidates.legal.byte().argmax(-1)
        return candidates.at(first + (candidates.legal.sum(-1) - 1).clamp(min=0) // 2)
