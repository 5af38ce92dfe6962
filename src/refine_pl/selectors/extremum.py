"""Positions where the next tokens are the most, or the least, uncertain."""

from __future__ import annotations

from typing import Literal

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import Tensor

from refine_pl.randomness import RowRandom
from refine_pl.records import Positions, RolloutPlan
from refine_pl.selectors.base import PositionSelector


class Extremum(PositionSelector):
    """position = argmax (or argmin) of the smoothed entropy over a segment's candidates.

    The limits of :class:`Entropy` at a temperature near 0: one position per segment, the first one
    of equals. No random numbers are used.

    Args:
        mode: ``argmax`` for the most uncertain candidate, ``argmin`` for the least uncertain one.
        min_prefix: tokens that must lie before a position.
        min_suffix: tokens that must lie at and after a position.
        offset: 0 when the first rollout token is the one whose entropy was scored (the released
            code); 1 starts one token later (paper, Eq. 5).
    """

    def __init__(
        self,
        mode: Literal["argmax", "argmin"] = "argmax",
        min_prefix: PositiveInt = 20,
        min_suffix: PositiveInt = 20,
        offset: NonNegativeInt = 0,
    ) -> None:
        super().__init__(min_prefix, min_suffix, offset)
        self.mode = mode

    def select(
        self, entropy: Tensor, num_tokens: Tensor, plan: RolloutPlan, generator: RowRandom
    ) -> Positions:
        """One position per segment; arguments as in :meth:`PositionSelector.select`."""
        candidates = self.candidates(entropy, num_tokens, plan)
        score = candidates.score if self.mode == "argmax" else -candidates.score
        return candidates.at(score.masked_fill(~candidates.legal, -torch.inf).argmax(dim=-1))
