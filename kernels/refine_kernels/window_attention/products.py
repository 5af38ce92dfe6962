"""Products of queries and weights with the windows of prefixes: gathered, or where they lie."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Elements of a window's keys from which a CPU multiplies window by window where they lie: the
# copies cost more than the products. Smaller ones take less time to gather than as many starts.
IN_PLACE = 2**13


class Gathered(NamedTuple):
    """Windows side by side; differentiable."""

    keys: Tensor  # [G, P, H, d]
    values: Tensor  # [G, P, H, d]
    first: Tensor  # [G] int64, where in its row each begins

    @property
    def width(self) -> int:
        """``P``, tokens of each."""
        return self.keys.shape[1]

    def scores(self, q: Tensor) -> Tensor:
        """``q [G, H, n, d]`` times the keys: ``[G, H, n, P]``."""
        return q @ self.keys.to(q.dtype).permute(0, 2, 3, 1)

    def sums(self, weights: Tensor) -> Tensor:
        """The values, summed by ``weights [G, H, n, P]``: ``[G, H, n, d]``."""
        return weights @ self.values.to(weights.dtype).transpose(1, 2)


class InPlace(NamedTuple):
    """Windows in the rows that they are parts of; without history."""

    keys: list[Tensor]  # G views [P, H, d]
    values: list[Tensor]
    first: Tensor  # [G] int64, where in its row each begins
    width: int  # P

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, row: Tensor, first: Tensor, width: int) -> InPlace:
        """``width`` tokens of each ``row [G]`` of ``[X, E, H, d]``, from ``first [G]`` on."""
        places = list(zip(row.tolist(), first.tolist(), strict=True))
        k, v = ([x[g, a : a + width] for g, a in places] for x in (keys, values))
        return cls(k, v, first, width)

    def scores(self, q: Tensor) -> Tensor:
        """As :meth:`Gathered.scores`."""
        result = q.new_empty(*q.shape[:3], self.width)
        for place, queries, keys in zip(result, q, self.keys, strict=True):
            torch.bmm(queries, keys.to(q.dtype).permute(1, 2, 0), out=place)
        return result

    def sums(self, weights: Tensor) -> Tensor:
        """As :meth:`Gathered.sums`."""
        result = weights.new_empty(*weights.shape[:3], self.values[0].shape[-1])
        for place, each, values in zip(result, weights, self.values, strict=True):
            torch.bmm(each, values.to(weights.dtype).transpose(0, 1), out=place)
        return result


def fits_in_place(keys: Tensor, values: Tensor, q: Tensor, width: int) -> bool:
    """Whether windows of ``width`` tokens are best read where they lie in ``[X, E, H, d]``."""
    if keys.device.type != "cpu" or width * keys.shape[2] * keys.shape[3] < IN_PLACE:
        return False
    return not (torch.is_grad_enabled() and any(x.requires_grad for x in (keys, values, q)))
