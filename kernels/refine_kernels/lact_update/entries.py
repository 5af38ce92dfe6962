"""Rows that share fast weights: which set each row uses, and how they read it together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from refine_kernels.host import on_host, rows_at, to_device
from refine_kernels.lact_update.reading import read
from refine_kernels.lact_update.weights import FastState
from refine_kernels.records import cat_rows, map_numbers


@dataclass(frozen=True, slots=True)
class Bank:
    """``G`` rows over ``K`` sets of fast weights. Its index tensors are on the host."""

    states: FastState  # [K, H, ...]
    index: Tensor  # [G] int64, the set that a row uses
    slot: Tensor | None  # [G] int64, its number among the rows of its set; None: row g uses set g
    width: int  # rows of the set that most rows use

    @classmethod
    def of(cls, states: FastState, index: Tensor) -> Bank:
        """Keep those of the ``states`` that ``index [G]`` names, each once.

        Where those are most of them, all are kept, because none need be copied.
        """
        count = states.applied.w0.shape[0]
        used, among, counts = index.unique(return_inverse=True, return_counts=True)
        if 2 * len(used) > count:
            counts = torch.bincount(index, minlength=count)
        else:
            index, states = among, states.map(lambda w: rows_at(w, used))
        order = index.argsort(stable=True)
        first = counts.cumsum(0) - counts
        number = torch.arange(len(index), device=index.device)
        slot = torch.empty_like(index).scatter(0, order, number - first[index[order]])
        return cls(states, index, slot, int(counts.max()))

    @classmethod
    def one_each(cls, states: FastState) -> Bank:
        """Row ``g`` uses set ``g``."""
        count = states.applied.w0.shape[0]
        return cls(states, torch.arange(count), None, 1)

    def select(self, rows: Tensor) -> Bank:
        """The rows ``rows [M]``."""
        return Bank.of(self.states, self.index[on_host(rows)])

    def replace(self, rows: Tensor, states: FastState) -> Bank:
        """The ``rows [M]`` use ``states [M, H, ...]`` of their own."""
        rows = on_host(rows)
        if len(rows) == len(self.index):
            return Bank.one_each(states)
        count = self.states.applied.w0.shape[0]
        added = torch.arange(len(rows)) + count
        return Bank.of(
            map_numbers(cat_rows, self.states, states), self.index.scatter(0, rows, added)
        )

    def read(self, q: Tensor) -> Tensor:
        """``f(q)`` of each row's set: ``[G, t, H, d]`` to the same shape."""
        sets, heads = self.states.applied.w0.shape[:2]
        length, width = q.shape[1], q.shape[3]
        place = None
        if self.slot is not None:  # side by side, so that a set is read once for all of its rows
            place = to_device(self.index * self.width + self.slot, q.device)
            spread = q.new_zeros(sets * self.width, *q.shape[1:])
            q = spread.index_copy(0, place, q).unflatten(0, (sets, self.width)).flatten(1, 2)
        result = read([self.states.applied], q, q.shape[1])
        if place is None:
            return result
        return result.reshape(sets * self.width, length, heads, width).index_select(0, place)
