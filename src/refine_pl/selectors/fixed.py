"""Positions that do not depend on the text."""

from __future__ import annotations

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import Tensor

from refine_pl.errors import ConfigError
from refine_pl.randomness import RowRandom
from refine_pl.records import Positions, RolloutPlan
from refine_pl.selectors.base import PositionSelector


class Fixed(PositionSelector):
    """position = stride, 2 stride, 3 stride, ...; or those of a list.

    Give exactly one of ``stride`` and ``positions``. They decide how many positions there are; the
    plan's number of segments is not read. No random numbers are used.

    Args:
        stride: tokens from one position to the next.
        positions: indices of first rollout tokens, ascending. One that a row is too short for is
            not valid in that row.
        min_prefix: tokens that must lie before a position.
        min_suffix: tokens that must lie at and after a position.
        offset: kept so that selectors can be exchanged; it only excludes positions below
            ``1 + offset``.
    """

    one_per_segment = False

    def __init__(
        self,
        stride: PositiveInt | None = None,
        positions: list[PositiveInt] | None = None,
        min_prefix: PositiveInt = 20,
        min_suffix: PositiveInt = 20,
        offset: NonNegativeInt = 0,
    ) -> None:
        super().__init__(min_prefix, min_suffix, offset)
        if (stride is None) == (positions is None):
            raise ConfigError(
                f"Fixed was given stride={stride} and positions={positions}",
                allowed="exactly one of the two",
                way_out="set the other one to null",
            )
        if stride is not None and stride < 1:
            raise ConfigError(f"Fixed was given stride={stride}", allowed="an integer above 0")
        if positions is not None and not (
            positions and positions[0] > 0 and sorted(set(positions)) == list(positions)
        ):
            raise ConfigError(
                f"Fixed was given positions={positions}",
                allowed="at least one position, all above 0, ascending, none twice",
            )
        self.stride = stride
        self.positions = positions

    def count(self, num_tokens: int, plan: RolloutPlan) -> int:
        """How many positions a row of ``num_tokens`` tokens gets."""
        listed = self.positions or range(self.stride or 1, num_tokens + 1, self.stride or 1)
        index = torch.tensor(list(listed), dtype=torch.int64)
        return int(self.legal(index, torch.tensor(num_tokens), plan).sum())

    def select(
        self, entropy: Tensor, num_tokens: Tensor, plan: RolloutPlan, generator: RowRandom
    ) -> Positions:
        """Positions ``[B, S]``; arguments as in :meth:`PositionSelector.select`.

        S is the number of listed positions, or of multiples of the stride that are legal in the
        longest row; at least 1.
        """
        num_tokens = num_tokens.to(entropy.device).unsqueeze(-1)
        if self.stride is not None:
            multiples = torch.arange(
                self.stride, max(entropy.shape[1], self.stride) + 1, self.stride
            ).to(entropy.device)
            fits = self.legal(multiples, num_tokens.max(), plan)
            listed = multiples[fits] if fits.any() else multiples[:1]
        else:
            listed = torch.tensor(self.positions, device=entropy.device)
        index = listed.expand(num_tokens.shape[0], -1)
        valid = self.legal(index, num_tokens, plan)
        return Positions(index.where(valid, 0), valid)
