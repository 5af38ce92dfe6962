"""Positions anywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from refine_pl.randomness import RowRandom
from refine_pl.records import Positions, RolloutPlan
from refine_pl.selectors.base import PositionSelector


class Random(PositionSelector):
    """P(position) = 1 / number of candidates of its segment.

    The paper's ablation of the entropy: one position per segment. Arguments as in
    :class:`PositionSelector`.
    """

    def select(
        self, entropy: Tensor, num_tokens: Tensor, plan: RolloutPlan, generator: RowRandom
    ) -> Positions:
        """One position per segment; arguments as in :meth:`PositionSelector.select`."""
        candidates = self.candidates(entropy, num_tokens, plan)
        return candidates.draw(torch.ones_like(candidates.score), generator)
