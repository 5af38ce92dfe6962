"""States of LaCT's fast weights in the middle of chunks, shared between rows that continue them.

``R = G * N`` rows continue ``G`` prefixes, ``N`` rows each. A row's state is the set of fast
weights that entered the chunk it is in, and the chunk's tokens so far: those of the prefix, which
its copies share, and the row's own. When the chunk is full, the row gets weights of its own.

Index tensors are on the host: they say what runs next, and a GPU is not waited for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refine_kernels.host import on_host, rows_at, to_device
from refine_kernels.lact_update.directions import Written, direction
from refine_kernels.lact_update.entries import Bank
from refine_kernels.lact_update.step import step
from refine_kernels.lact_update.unchanging import UnchangingState
from refine_kernels.lact_update.weights import FastTokens, FastWeights, UpdateRule
from refine_kernels.records import cat_tokens, map_numbers, rows_of

# Tokens of its own after which a row copies what it shares: rarely when there is much to copy.
FOLD_AT, FOLD_COPIES_AT = 16, 64


@dataclass(frozen=True, slots=True)
class SharedFastState:
    """``R = G * N`` rows over ``G`` prefixes."""

    bank: Bank  # of G rows
    source: FastTokens  # [X, E, H, ...] that the prefixes' unfinished chunks lie in
    row: Tensor  # [G] int64, row of the source
    start: Tensor  # [G] int64, first token of the chunk in the source
    fill: Tensor  # [G] int64, tokens of the chunk so far, at most chunk_size
    taken: Tensor  # [G] own tokens that the weights have already taken in
    room: int  # tokens that every row can take before one is full
    copies: int = 1  # N
    own: FastTokens | None = None  # [R, o, H, ...] read since

    @property
    def num_own(self) -> int:
        """Tokens that each row has read since its prefix."""
        return 0 if self.own is None else self.own.k.shape[1]

    def count(self) -> Tensor:
        """``[G]`` tokens of the unfinished chunks, the rows' own included."""
        return self.fill + self.num_own - self.taken

    def spread(self) -> SharedFastState:
        """The same rows as ``R`` prefixes with a copy each; no tokens are copied."""
        if self.copies == 1:
            return self
        group = torch.arange(len(self.row)).repeat_interleave(self.copies)
        return self._prefixes(group)

    def select(self, rows: Tensor) -> SharedFastState:
        """The rows ``rows [M]`` int64."""
        own = None if self.own is None else self.own.map(lambda x: x[rows])
        return replace(self._prefixes(on_host(rows) // self.copies), own=own)

    def _prefixes(self, groups: Tensor) -> SharedFastState:
        """Rows over the prefixes ``groups`` (on the host), a copy each."""
        picked = {name: getattr(self, name)[groups] for name in ("row", "start", "fill", "taken")}
        return replace(self, bank=self.bank.select(groups), copies=1, **picked)

    def chunk_tokens(self) -> FastTokens:
        """The tokens of each prefix's chunk ``[G, P, H, ...]``, the longest filling all of ``P``.

        Own tokens are not among them. What comes after a row's ``fill`` is any token.
        """
        length = self.source.k.shape[1]
        start, row = self._there(self.start)[:, None], self._there(self.row)[:, None]
        offset = torch.arange(int(self.fill.max()), device=start.device)
        index = (start + offset).clamp(max=length - 1) + row * length
        return self.source.map(lambda x: rows_of(x, index))

    def _there(self, index: Tensor) -> Tensor:
        """Numbers of the host where the tokens are."""
        return to_device(index, self.source.k.device)

    def fold(self) -> SharedFastState:
        """``R`` prefixes that hold their own tokens, and no more of the source than they need."""
        rows = self.spread()
        tokens, fill = rows.chunk_tokens(), rows.fill
        if rows.own is not None:
            fill = rows.count()
            before, num_own = tokens.k.shape[1], rows.num_own
            shared, taken = self._there(rows.fill)[:, None], self._there(rows.taken)[:, None]
            offset = torch.arange(int(fill.max()), device=shared.device)
            own = before + taken + offset - shared
            index = torch.where(offset < shared, offset, own).clamp(max=before + num_own - 1)
            number = torch.arange(len(fill), device=shared.device)[:, None]
            index = index + number * (before + num_own)
            tokens = map_numbers(cat_tokens, tokens, rows.own)
            tokens = tokens.map(lambda x: rows_of(x, index))
        number = torch.arange(len(fill))
        none = torch.zeros_like(fill)
        return SharedFastState(rows.bank, tokens, number, none, fill, none, rows.room)

    def unchanging(self, length: int) -> UnchangingState | None:
        """For reading ``length`` tokens before any weights change; None if some do."""
        if self.room < length:
            return None
        weights = self.bank.states.applied.map(lambda w: rows_at(w, self.bank.index))
        return UnchangingState(weights, length, self.copies)

    def fork(self, n: int) -> SharedFastState:
        """Every row ``n`` times, sharing its prefix."""
        rows = self if self.copies == 1 and self.own is None else self.fold()
        return replace(rows, copies=n)

    def read(
        self, q: Tensor, tokens: FastTokens, norms: FastWeights, rule: UpdateRule
    ) -> tuple[Tensor, SharedFastState]:
        """Read ``t`` tokens of each of the ``R`` rows; made for a few tokens.

        Args:
            q: ``[R, t, H, d]``.
            tokens: the same tokens' keys, values, rates and momentum.
            norms: of the rows of the initial weights, ``[H, rows, 1]``.
            rule: how the weights change.

        Returns:
            ``f(q) [R, t, H, d]`` in q's type, and the state after the tokens.
        """
        state, outputs, first = self, [], 0
        dtype = self.bank.states.applied.w0.dtype
        while first < q.shape[1]:
            if state.room == 0:
                state = state.update(norms, rule)
            last = min(first + state.room, q.shape[1])
            queries = q[:, first:last].to(dtype)
            by_prefix = queries.unflatten(0, (-1, state.copies)).flatten(1, 2)
            outputs.append(state.bank.read(by_prefix).reshape(queries.shape))
            state = state._append(tokens.map(lambda x, a=first, b=last: x[:, a:b]))  # type: ignore[misc]
            first = last
        if state.num_own >= (FOLD_AT if state.copies == 1 else FOLD_COPIES_AT):
            state = state.fold()
        return torch.cat(outputs, 1).to(q.dtype), state

    def _append(self, tokens: FastTokens) -> SharedFastState:
        room = self.room - tokens.k.shape[1]
        if self.own is not None:
            tokens = map_numbers(cat_tokens, self.own, tokens)
        return replace(self, own=tokens, room=room)

    def update(self, norms: FastWeights, rule: UpdateRule) -> SharedFastState:
        """New weights for the rows whose chunk is full."""
        full = (self.count() == rule.chunk_size).nonzero().flatten()  # prefixes
        if len(full) == 0:  # the rows that were are not among these any more
            return replace(self, room=rule.chunk_size - int(self.count().max()))
        copies = self.copies
        rows = (full[:, None] * copies + torch.arange(copies)).flatten()
        found, kept = self._direction(full, rows)
        before = self.bank.states.map(lambda w: rows_at(w, self.bank.index[full]))
        before = before.map(lambda w: w.repeat_interleave(copies, 0))
        momentum = None if kept is None else kept / rule.chunk_size
        after = step(before, found, momentum, norms, rule)
        spread = self.spread()
        result = replace(
            spread,
            bank=spread.bank.replace(rows, after),
            fill=spread.fill.index_fill(0, rows, 0),
            taken=spread.taken.index_fill(0, rows, self.num_own),
        )
        return replace(result, room=rule.chunk_size - int(result.count().max()))

    def _direction(self, full: Tensor, rows: Tensor) -> tuple[FastWeights, Tensor | None]:
        """The full chunks' directions ``[R_full, H, ...]`` and their sums of momentum.

        The prefix's share is the same for its copies; it is computed once.
        """
        weights = self.bank.states.applied.map(lambda w: rows_at(w, self.bank.index[full]))
        shared = replace(self, row=self.row[full], start=self.start[full], fill=self.fill[full])
        found, kept = None, None
        if int(shared.fill.max()) > 0:
            tokens = shared.chunk_tokens()
            inside = torch.arange(tokens.k.shape[1]) < shared.fill[:, None]
            found, kept = _masked_direction(weights, tokens, inside)
            found = found.map(lambda d: d.repeat_interleave(self.copies, 0))
            kept = None if kept is None else kept.repeat_interleave(self.copies, 0)
        if self.own is not None:
            own = self.own.map(lambda x: rows_at(x, rows))
            taken = self.taken[full].repeat_interleave(self.copies)[:, None]
            inside = torch.arange(own.k.shape[1]) >= taken
            weights = weights.map(lambda w: w.repeat_interleave(self.copies, 0))
            more, more_kept = _masked_direction(weights, own, inside)
            if found is None:
                found, kept = more, more_kept
            else:
                found = map_numbers(torch.add, found, more)
                kept = None if kept is None or more_kept is None else kept + more_kept
        assert found is not None
        return found, kept


def _masked_direction(
    weights: FastWeights, tokens: FastTokens, inside: Tensor
) -> tuple[FastWeights, Tensor | None]:
    """The direction ``[G, H, ...]`` of the tokens that are ``inside [G, P]`` (on the host), and
    the sum ``[G, H]`` of their momentum.
    """
    dtype = weights.w0.dtype
    mask = to_device(inside, weights.w0.device).to(dtype)[:, :, None, None]
    rates = tokens.rates.to(dtype) * mask
    found, _ = direction(weights, Written.of(tokens.k.to(dtype), tokens.v.to(dtype), rates))
    if tokens.momentum is None:
        return found, None
    return found, (tokens.momentum.to(dtype) * mask[..., 0]).sum(1)
