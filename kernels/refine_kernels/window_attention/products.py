"""Products with the keys, or the values, of windows: of copies side by side, or where they lie."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Elements of a window's keys from which a CPU multiplies window by window where they lie: the
# copies cost more than the products. Smaller ones take less time to gather than as many starts.
IN_PLACE = 2**13


class Gathered(NamedTuple):
    """``G`` windows side by side; differentiable."""

    rows: Tensor  # [G, P, H, d]

    def scores(self, x: Tensor) -> Tensor:
        """``x [G, H, n, d]`` times each token's channels: ``[G, H, n, P]``."""
        return x @ self.rows.to(x.dtype).permute(0, 2, 3, 1)

    def sums(self, weights: Tensor) -> Tensor:
        """The tokens, summed by ``weights [G, H, n, P]``: ``[G, H, n, d]``."""
        return weights @ self.rows.to(weights.dtype).transpose(1, 2)


class InPlace(NamedTuple):
    """``G`` windows in the rows that they are parts of."""

    rows: tuple[Tensor, ...]  # views [P, H, d]

    @classmethod
    def of(cls, x: Tensor, row: Tensor, first: Tensor, width: int) -> InPlace:
        """``width`` tokens of each ``row [G]`` of ``x [X, E, H, d]``, from ``first [G]`` on."""
        places = zip(row.tolist(), first.tolist(), strict=True)
        return cls(tuple(x[g, a : a + width] for g, a in places))

    def scores(self, x: Tensor) -> Tensor:
        """As :meth:`Gathered.scores`, without a history."""
        result = x.new_empty(*x.shape[:3], self.rows[0].shape[0])
        for place, each, rows in zip(result, x, self.rows, strict=True):
            torch.bmm(each, rows.permute(1, 2, 0), out=place)
        return result

    def sums(self, weights: Tensor) -> Tensor:
        """As :meth:`Gathered.sums`, without a history."""
        result = weights.new_empty(*weights.shape[:3], self.rows[0].shape[2])
        for place, each, rows in zip(result, weights, self.rows, strict=True):
            torch.bmm(each, rows.transpose(0, 1), out=place)
        return result

    def add_outer(self, weights: Tensor, x: Tensor) -> None:
        """Add to each token ``x [G, H, n, d]``, summed by ``weights [G, H, n, P]``."""
        for place, each, values in zip(self.rows, weights, x, strict=True):
            place.transpose(0, 1).baddbmm_(each.mT, values)


def outer(weights: Tensor, x: Tensor) -> Tensor:
    """What :meth:`InPlace.add_outer` adds, ``[G, P, H, d]``."""
    return (weights.mT @ x).transpose(1, 2)


def fits_in_place(source: Tensor, q: Tensor, width: int) -> bool:
    """Whether windows of ``width`` tokens are best read where they lie in ``[X, E, H, d]``.

    By queries of another type they would have to be converted.
    """
    large = width * source.shape[2] * source.shape[3] >= IN_PLACE
    return large and source.device.type == "cpu" and source.dtype == q.dtype
