"""Attention of a few tokens to windows of prefixes, without copies of the windows.

The windows of many positions hold as many keys as whole rows, or more. Neither they nor their
gradients are kept: a backward pass reads some windows at a time, and leaves what their gradients
are summed from in the mailbox of the pass that made the keys, which adds it up in its own backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine_kernels.compact import Mailbox
from refine_kernels.records import rows_of
from refine_kernels.window_attention.products import Gathered, InPlace, fits_in_place, outer
from refine_kernels.window_attention.reading import Asked, Seen, Written

# Elements of the keys that a backward pass gathers at once; at least one window's.
GATHERED = {"cpu": 2**19, "cuda": 2**26}


@dataclass(frozen=True, slots=True)
class Source:
    """Keys and values that windows lie in."""

    keys: Tensor  # [X, E, H, d]; without history if there is a mailbox
    values: Tensor  # [X, E, H, d]
    handle: Tensor | None = None  # of the pass that made them
    mailbox: Mailbox | None = None

    @property
    def owner(self) -> Mailbox | None:
        """The mailbox, if gradients are wanted and have to go there."""
        wanted = self.handle is not None and self.handle.requires_grad and torch.is_grad_enabled()
        return self.mailbox if wanted else None

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at ``index [G, P]`` of the first two dimensions taken as one."""
        keys, values = rows_of(self.keys, index), rows_of(self.values, index)
        if self.owner is None:
            return keys, values
        return _Picked.apply(self.handle, self.owner, index, keys, values)


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows at the ends of ``G`` prefixes, and how many rows read each."""

    row: Tensor  # [G] int64, row of keys and values
    end: Tensor  # [G] int64, where in it the prefix ends
    count: Tensor  # [G] int64, tokens of the prefix that can be seen, at most window - 1
    window: int  # tokens that each sees, itself included
    copies: int = 1  # N
    whole: bool = False  # the window of prefix g is all of row g

    def index(self, length: int) -> Tensor:
        """Where the windows' tokens lie ``[G, P]``, in rows of ``length``.

        The last one is that of the prefix's last token. Only a row's last ``count`` are real.
        """
        width = min(self.window - 1, length)
        index = self.end[:, None] - width + torch.arange(width, device=self.end.device)
        return index.clamp(0, max(length - 1, 0)) + self.row[:, None] * length

    def first(self, length: int) -> Tensor:
        """The first ``[G]`` of ``P`` tokens side by side in rows of ``length``, to be looked at.

        Where a prefix is shorter than its window, tokens after its end are among them.
        """
        return (self.end - min(self.window - 1, length)).clamp(min=0)

    def places(self, length: int) -> Tensor:
        """Where those lie ``[G, P]``, as in :meth:`index`."""
        column = torch.arange(min(self.window - 1, length), device=self.end.device)
        return (self.first(length) + self.row * length)[:, None] + column

    def select(self, groups: Tensor) -> Windows:
        """The prefixes ``groups [M]``, a reader each."""
        row, end, count = (x[groups] for x in (self.row, self.end, self.count))
        return Windows(row, end, count, self.window)

    def parts(self, keys: Tensor) -> Iterator[tuple[Windows, slice]]:
        """Some prefixes at a time of ``keys [X, E, H, d]``, and the rows that read them."""
        each = max(min(self.window - 1, keys.shape[1]) * keys.shape[2] * keys.shape[3], 1)
        step = max(GATHERED.get(keys.device.type, 2**26) // each, 1)
        for first in range(0, len(self.row), step):
            last = min(first + step, len(self.row))
            row, end, count = (x[first:last] for x in (self.row, self.end, self.count))
            rows = slice(first * self.copies, last * self.copies)
            yield Windows(row, end, count, self.window, self.copies), rows

    def seen(self, keys: Gathered | InPlace, values: Gathered | InPlace, length: int) -> Seen:
        """What is looked at in rows of ``length``, given both as :meth:`places` tells."""
        width, distance = min(self.window - 1, length), self.end - self.first(length)
        return Seen(keys, values, width, distance, self.count, self.window, self.copies)

    def fit_in_place(self, keys: Tensor, q: Tensor) -> bool:
        """Whether they are best read where they lie in ``keys [X, E, H, d]``."""
        return fits_in_place(keys, q, min(self.window - 1, keys.shape[1]))

    def in_place(self, x: Tensor) -> InPlace:
        """The windows in ``x [X, E, H, d]``."""
        length = x.shape[1]
        return InPlace.of(x, self.row, self.first(length), min(self.window - 1, length))


def attend(asked: Asked, windows: Windows, source: Source) -> Tensor:
    """Of the rows' tokens to windows and to each other: ``[R, t, H, d]``."""
    if source.owner is not None:
        return _Attend.apply(source.handle, source, windows, *asked)
    history = any(x.requires_grad for x in (source.keys, source.values, *asked))
    return _seen(asked.q, windows, source, torch.is_grad_enabled() and history).read(asked)


def _seen(q: Tensor, windows: Windows, source: Source, history: bool) -> Seen:
    """What ``q`` is to be multiplied with, differentiably if there is a ``history``."""
    keys, values, length = source.keys, source.values, source.keys.shape[1]
    if windows.whole:
        return windows.seen(Gathered(keys), Gathered(values), length)
    if not history and windows.fit_in_place(keys, q):
        return windows.seen(windows.in_place(keys), windows.in_place(values), length)
    keys, values = source.rows(windows.places(length))
    return windows.seen(Gathered(keys), Gathered(values), length)


class _Rows(NamedTuple):
    """Gradients of keys and values that were picked."""

    places: Tensor  # [G, P] of the first two dimensions taken as one
    keys: Tensor | None  # [G, P, H, d]
    values: Tensor | None

    def add_to(self, d_source: tuple[Tensor, Tensor], source: tuple[Tensor, Tensor]) -> None:
        """Where they belong, ``[X, E, H, d]`` of keys and of values."""
        for place, found in zip(d_source, self[1:], strict=True):
            if found is not None:
                found = found.flatten(0, 1).to(place.dtype)
                place.flatten(0, 1).index_add_(0, self.places.flatten(), found)


class _Picked(torch.autograd.Function):
    """Rows that were picked; their gradients go into the mailbox."""

    @staticmethod
    def forward(
        ctx: Any, handle: Tensor, mailbox: Mailbox, index: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.mailbox, ctx.handle = mailbox, handle.detach()
        ctx.save_for_backward(index)
        ctx.set_materialize_grads(False)
        return keys, values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(gradient is None for gradient in gradients):
            return (None,) * 5
        ctx.mailbox.put(_Rows(*ctx.saved_tensors, *gradients))
        return ctx.handle, None, None, None, None


class _Letter(NamedTuple):
    """What rows wrote into the gradients of windows, some prefixes at a time."""

    parts: list[tuple[Windows, Written]]

    def add_to(self, d_source: tuple[Tensor, Tensor], source: tuple[Tensor, Tensor]) -> None:
        """Where it belongs, ``[X, E, H, d]`` of keys and of values."""
        for windows, written in self.parts:
            if windows.fit_in_place(source[0], written.queries):
                for place, pair in zip(d_source, written.pairs, strict=True):
                    windows.in_place(place).add_outer(*pair)
            else:
                found = (outer(*pair) for pair in written.pairs)
                _Rows(windows.places(source[0].shape[1]), *found).add_to(d_source, source)


class _Attend(torch.autograd.Function):
    """The gradients of keys and values that are not the rows' own are left to the mailbox."""

    @staticmethod
    def forward(
        ctx: Any, handle: Tensor, source: Source, windows: Windows, *asked: Tensor
    ) -> Tensor:
        ctx.mailbox, ctx.handle = source.mailbox, handle.detach()
        ctx.window, ctx.copies = windows.window, windows.copies
        kept = source.keys, source.values, windows.row, windows.end, windows.count
        ctx.save_for_backward(*kept, *asked)
        rows = Asked(*asked)
        return _seen(rows.q, windows, source, history=False).read(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        keys, values, row, end, count, *given = ctx.saved_tensors
        windows = Windows(row, end, count, ctx.window, ctx.copies)
        found, letter = Asked(*map(torch.empty_like, given)), _Letter([])
        # Scores must not be rounded by an autocast around the backward pass.
        with torch.autocast(keys.device.type, enabled=False):
            for part, rows in windows.parts(keys):
                asked = Asked(*(x[rows] for x in given))
                seen = _seen(asked.q, part, Source(keys, values), history=False)
                gradients, written = seen.gradients(asked, d_output[rows])
                for place, gradient in zip(found, gradients, strict=True):
                    place[rows] = gradient
                letter.parts.append((part, written))
        ctx.mailbox.put(letter)
        return ctx.handle, None, None, *found
