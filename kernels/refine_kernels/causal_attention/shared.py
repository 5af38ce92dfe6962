"""Keys and values of prefixes, shared between the rows that continue them.

``X`` prefixes lie in memory once, whatever the number of rows. ``R`` rows continue them: a row sees
the first ``end`` tokens of its prefix and its own tokens since, which only it holds. The rows of a
prefix are read together, ``copies`` of them at most, so that its keys pass through the processor
once for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refine_kernels.host import on_host, to_device

# A row's newest tokens are joined to its earlier ones in blocks: one by one, each token would
# copy all of them.
OWN_BLOCK = 64


@dataclass(frozen=True, slots=True)
class SharedCache:
    """``R`` rows over ``X`` prefixes."""

    keys: Tensor  # [X, G, E, d]
    values: Tensor  # [X, G, E, d]
    end: Tensor  # [R] int64, tokens of its prefix that a row sees
    copies: int = 1  # most rows of a prefix
    # [R] int64 on the host: prefix x copies + which of its rows; None: every place is taken, in
    # order, and R = X * copies.
    places: Tensor | None = None
    own_keys: tuple[Tensor, ...] = ()  # blocks [R, G, o, d] that were read since, oldest first
    own_values: tuple[Tensor, ...] = ()

    @property
    def num_own(self) -> int:
        """Tokens that each row has read since its prefix."""
        return sum(block.shape[2] for block in self.own_keys)

    def select(self, rows: Tensor) -> SharedCache:
        """The rows ``rows [M]`` int64; a prefix that no row is left of goes."""
        chosen = on_host(rows)
        places = torch.arange(len(self.end)) if self.places is None else self.places
        prefix = places[chosen] // self.copies
        kept, index, counts = prefix.unique(return_inverse=True, return_counts=True)
        copies = int(counts.max()) if len(counts) else 1
        order = index.argsort(stable=True)
        first = (counts.cumsum(0) - counts).repeat_interleave(counts)
        number = torch.empty_like(index)  # of each row among those of its prefix
        number[order] = torch.arange(len(index)) - first
        places = index * copies + number
        taken = torch.equal(places, torch.arange(len(kept) * copies))

        def prefixes(x: Tensor) -> Tensor:
            return x if len(kept) == len(x) else x.index_select(0, to_device(kept, x.device))

        return SharedCache(
            prefixes(self.keys),
            prefixes(self.values),
            self.end[rows],
            copies,
            None if taken else places,
            tuple(block[rows] for block in self.own_keys),
            tuple(block[rows] for block in self.own_values),
        )

    def fork(self, n: int) -> SharedCache:
        """Every row ``n`` times, one after the other, sharing its prefix."""
        places = self.places
        if places is not None:
            places = (places[:, None] * n + torch.arange(n)).flatten()
        return replace(
            self,
            end=self.end.repeat_interleave(n),
            copies=self.copies * n,
            places=places,
            own_keys=tuple(block.repeat_interleave(n, 0) for block in self.own_keys),
            own_values=tuple(block.repeat_interleave(n, 0) for block in self.own_values),
        )

    def extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows that share nothing: all that was read, and ``k, v [R, T, G, d]`` after it.

        Returns:
            Keys and values ``[R, G, E', d]``, each row's tokens from the first one on; and ``[R]``
            tokens of each row before the new ones.
        """
        size, own, length = self.keys.shape[2], self.num_own, k.shape[1]
        column = torch.arange(size + own + length, device=k.device)
        ahead = size - self.end[:, None]  # what follows the prefix moves up to its end
        index = torch.where(column < self.end[:, None], column, column + ahead)
        index = index.clamp(max=len(column) - 1)[:, None, :, None]
        places = torch.arange(len(self.end)) if self.places is None else self.places
        rows = None if self.copies == 1 else to_device(places // self.copies, k.device)

        def packed(prefix: Tensor, blocks: tuple[Tensor, ...], new: Tensor) -> Tensor:
            prefix = prefix if rows is None else prefix.index_select(0, rows)
            parts = [x.to(new.dtype) for x in (prefix, *blocks)]
            whole = torch.cat([*parts, new.transpose(1, 2)], 2)
            return whole.gather(2, index.expand(-1, whole.shape[1], -1, whole.shape[3]))

        keys = packed(self.keys, self.own_keys, k)
        return keys, packed(self.values, self.own_values, v), self.end + own

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, SharedCache]:
        """Read ``t`` tokens of each of the ``R`` rows: ``q [R, t, H, d]``, ``k, v [R, t, G, d]``.

        Returns:
            ``[R, t, H, d]``, and the state after the tokens.
        """
        earlier, length, groups = self.num_own, q.shape[1], k.shape[2]
        after = self._append(k.transpose(1, 2), v.transpose(1, 2))
        to_grid, from_grid = self._grid(q.device)
        # The heads that share a key, and their tokens, in one dimension: [R, G, n, d].
        q = (q * q.shape[-1] ** -0.5).transpose(1, 2).unflatten(1, (groups, -1)).flatten(2, 3)
        grid = to_grid(q).transpose(1, 2)  # [X, G, copies, n, d]
        shared = grid.flatten(2, 3) @ self.keys.to(q.dtype).transpose(-1, -2)
        size = self.keys.shape[2]
        shared = shared.unflatten(2, (self.copies, -1))  # [X, G, copies, n, E]
        end = to_grid(self.end)[:, None, :, None, None]
        hidden = torch.arange(size, device=q.device) >= end
        scores = [shared.masked_fill(hidden, -torch.inf)]
        time = torch.arange(earlier, earlier + length, device=q.device)[:, None]
        start = 0
        for block in after.own_keys:
            own = (q @ block.transpose(-1, -2)).unflatten(2, (-1, length))  # [R, G, H/G, t, o]
            stop = start + block.shape[2]
            if stop > earlier + 1:  # else all of it comes before every query
                number = torch.arange(start, stop, device=q.device)
                own = own.masked_fill(number > time, -torch.inf)
            scores.append(to_grid(own.flatten(2, 3)).transpose(1, 2))
            start = stop
        joined = torch.cat(scores, -1)
        weights = joined.to(torch.promote_types(q.dtype, torch.float32)).softmax(-1).to(q.dtype)
        seen = weights[..., :size].flatten(2, 3) @ self.values.to(q.dtype)
        result = from_grid(seen.unflatten(2, (self.copies, -1)).transpose(1, 2))  # [R, G, n, d]
        own_weights = from_grid(weights[..., size:].transpose(1, 2))
        start = 0
        for block in after.own_values:
            stop = start + block.shape[2]
            result = result + own_weights[..., start:stop] @ block
            start = stop
        return result.unflatten(2, (-1, length)).flatten(1, 2).transpose(1, 2), after

    def _append(self, k: Tensor, v: Tensor) -> SharedCache:
        """The state after ``k, v [R, G, t, d]``: at most a long block and a growing one."""

        def appended(blocks: tuple[Tensor, ...], new: Tensor) -> tuple[Tensor, ...]:
            blocks = tuple(block.to(new.dtype) for block in blocks)
            growing = bool(blocks) and blocks[-1].shape[2] < OWN_BLOCK
            if not growing:
                return (*blocks, new)
            new = torch.cat([blocks[-1], new], 2)
            if len(blocks) == 1 or new.shape[2] < OWN_BLOCK:
                return (*blocks[:-1], new)
            return (torch.cat([blocks[0], new], 2),)

        return replace(
            self,
            own_keys=appended(self.own_keys, k),
            own_values=appended(self.own_values, v),
        )

    def _grid(self, device: torch.device) -> tuple[Callable[[Tensor], Tensor], ...]:
        """Functions from rows ``[R, ...]`` to ``[X, copies, ...]``, and back."""
        size = len(self.keys) * self.copies
        if self.places is None:
            return (lambda x: x.unflatten(0, (-1, self.copies)), lambda x: x.flatten(0, 1))
        index = to_device(self.places, device)

        def to_grid(x: Tensor) -> Tensor:
            empty = x.new_zeros(size, *x.shape[1:])
            return empty.index_copy(0, index, x).unflatten(0, (-1, self.copies))

        return to_grid, lambda x: x.flatten(0, 1).index_select(0, index)
