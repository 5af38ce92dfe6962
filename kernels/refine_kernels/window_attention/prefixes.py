"""Attention of a few tokens to windows of prefixes, without copies of the windows.

The windows of many positions hold as many keys as whole rows, or more. Neither they nor their
gradients are kept: a backward pass gathers some windows at a time, and leaves queries and gradients
of outputs in the mailbox of the pass that made the keys, which adds up theirs when its turn comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine_kernels.compact import Mailbox
from refine_kernels.records import rows_of
from refine_kernels.window_attention.products import Gathered, InPlace, fits_in_place

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

    def part(self, first: int, last: int) -> Windows:
        """The prefixes from the ``first`` to before the ``last``."""
        row, end, count = (x[first:last] for x in (self.row, self.end, self.count))
        return Windows(row, end, count, self.window, self.copies)

    def read(self, q: Tensor, own: tuple[Tensor, Tensor], seen: Gathered | InPlace) -> Tensor:
        """Attend to the window and to a row's own tokens, of which the last ones ask.

        Args:
            q: ``[R, t, H, d]``.
            own: keys and values ``[R, o + t, H, d]`` since the prefix.
            seen: those of the windows, as :meth:`seen` gives them.

        Returns:
            ``[R, t, H, d]``.
        """
        (k, v), length, width, device = own, q.shape[1], seen.width, q.device
        earlier = k.shape[1] - length
        time = torch.arange(earlier, earlier + length, device=device)[:, None]
        own_time = torch.arange(earlier + length, device=device)
        hidden_own = (own_time > time) | (own_time <= time - self.window)  # [t, o + t]
        # From each to the prefix's end, [G, 1, P].
        away = (self.end - seen.first)[:, None, None] - torch.arange(width, device=device)
        hidden = (away < 1) | (away > self.count[:, None, None]) | (away + time >= self.window)

        def by_prefix(x: Tensor) -> Tensor:  # [R, t, H, d] to [G, H, N * t, d]
            return x.unflatten(0, (-1, self.copies)).flatten(1, 2).transpose(1, 2)

        scale = q.shape[-1] ** -0.5
        shared = seen.scores(by_prefix(q * scale))  # [G, H, N * t, P]
        shared = shared.unflatten(2, (self.copies, length)).transpose(1, 2).flatten(0, 1)
        hidden = hidden[:, None, None].expand(-1, self.copies, -1, -1, -1).flatten(0, 1)
        own_scores = (q * scale).transpose(1, 2) @ k.permute(0, 2, 3, 1)
        scores = [(shared, hidden), (own_scores, hidden_own)]
        joined = torch.cat([x.masked_fill(mask, -torch.inf) for x, mask in scores], -1)
        # [R, H, t, P + o + t]
        weights = joined.to(torch.promote_types(q.dtype, torch.float32)).softmax(-1).to(q.dtype)
        output = weights[..., width:] @ v.transpose(1, 2)
        to_prefix = weights[..., :width].transpose(1, 2)  # [R, t, H, P]
        to_prefix = seen.sums(by_prefix(to_prefix))  # [G, H, N * t, d]
        to_prefix = to_prefix.unflatten(2, (self.copies, length)).transpose(1, 2).flatten(0, 1)
        return (output + to_prefix).transpose(1, 2)


def attend(q: Tensor, own: tuple[Tensor, Tensor], windows: Windows, source: Source) -> Tensor:
    """Of ``q [R, t, H, d]``, to the same shape; see :meth:`Windows.read`."""
    if source.owner is not None:
        return _Attend.apply(source.handle, source, windows, q, *own)
    return windows.read(q, own, _seen(q, windows, source))


def _seen(q: Tensor, windows: Windows, source: Source) -> Gathered | InPlace:
    """What ``q`` is to be multiplied with."""
    keys, values, length = source.keys, source.values, source.keys.shape[1]
    width, first = min(windows.window - 1, length), windows.first(length)
    if windows.whole:
        return Gathered(keys, values, first)
    if fits_in_place(keys, values, q, width):
        return InPlace.of(keys, values, windows.row, first, width)
    return Gathered(*source.rows(windows.places(length)), first)


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


class _Asked(NamedTuple):
    """A reading, and the gradient of what it gave."""

    windows: Windows
    given: tuple[Tensor, Tensor, Tensor]  # q, and the rows' own k and v
    d_output: Tensor

    def gradients(self, source: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Those of what was given."""
        found, length = [torch.empty_like(x) for x in self.given], source[0].shape[1]
        for windows, index, rows in self._parts(source[0]):
            given = [x[rows].detach().requires_grad_() for x in self.given]
            keys, values = (rows_of(x, index) for x in source)
            seen = Gathered(keys, values, windows.first(length))
            parts = _gradients(windows, given, seen, given, self.d_output[rows])
            for place, part in zip(found, parts, strict=True):
                place[rows] = part
        return found

    def add_to(self, d_source: tuple[Tensor, Tensor], source: tuple[Tensor, Tensor]) -> None:
        """Those of the source, where they belong."""
        length = source[0].shape[1]
        for windows, index, rows in self._parts(source[0]):
            keys, values = (rows_of(x, index).detach().requires_grad_() for x in source)
            seen = Gathered(keys, values, windows.first(length))
            given = [x[rows] for x in self.given]
            found = _gradients(windows, given, seen, (keys, values), self.d_output[rows])
            _Rows(index, *found).add_to(d_source, source)

    def _parts(self, keys: Tensor) -> Iterator[tuple[Windows, Tensor, slice]]:
        """Some prefixes at a time, where their windows lie, and the rows that read them."""
        windows, copies = self.windows, self.windows.copies
        index = windows.places(keys.shape[1])
        each = max(index.shape[1] * keys.shape[2] * keys.shape[3], 1)
        step = max(GATHERED.get(keys.device.type, 2**26) // each, 1)
        for first in range(0, len(index), step):
            last = min(first + step, len(index))
            rows = slice(first * copies, last * copies)
            yield windows.part(first, last), index[first:last], rows


def _gradients(
    windows: Windows,
    given: Sequence[Tensor],
    seen: Gathered,
    wanted: Sequence[Tensor],
    d_output: Tensor,
) -> tuple[Tensor, ...]:
    q, k, v = given
    with torch.enable_grad(), torch.autocast(q.device.type, enabled=False):
        output = windows.read(q, (k, v), seen)
    return torch.autograd.grad(output, wanted, d_output)


class _Attend(torch.autograd.Function):
    """The gradients of keys and values that are not the rows' own are left to the mailbox."""

    @staticmethod
    def forward(
        ctx: Any, handle: Tensor, source: Source, windows: Windows, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        ctx.mailbox, ctx.handle = source.mailbox, handle.detach()
        ctx.window, ctx.copies = windows.window, windows.copies
        kept = q, k, v, source.keys, source.values, windows.row, windows.end, windows.count
        ctx.save_for_backward(*kept)
        return windows.read(q, (k, v), _seen(q, windows, source))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, keys, values, row, end, count = ctx.saved_tensors
        windows = Windows(row, end, count, ctx.window, ctx.copies)
        asked = _Asked(windows, (q, k, v), d_output)
        found = asked.gradients((keys, values))
        ctx.mailbox.put(asked)
        return ctx.handle, None, None, *found
