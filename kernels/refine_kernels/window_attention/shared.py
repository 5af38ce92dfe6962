"""The window's keys and values after a prefix, shared between rows that continue it.

``R = G * N`` rows continue ``G`` prefixes, ``N`` rows each. A row's window is the last
``window - 1`` tokens of its prefix, which its copies share, and its own tokens since.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refine_kernels.window_attention.prefixes import Source, Windows, attend
from refine_kernels.window_attention.reading import Asked

# Tokens of its own after which a row copies what it shares: rarely when there is much to copy.
FOLD_AT, FOLD_COPIES_AT = 16, 64


@dataclass(frozen=True, slots=True)
class SharedWindow:
    """``R = G * N`` rows over ``G`` prefixes."""

    source: Source  # that the prefixes' windows lie in
    windows: Windows  # of G prefixes, and N
    own_keys: Tensor | None = None  # [R, o, H, d] read since
    own_values: Tensor | None = None  # [R, o, H, d]

    @property
    def copies(self) -> int:
        """Rows of each prefix."""
        return self.windows.copies

    @property
    def num_own(self) -> int:
        """Tokens that each row has read since its prefix."""
        return 0 if self.own_keys is None else self.own_keys.shape[1]

    def without_mailbox(self) -> SharedWindow:
        """The same windows, whose gradients go nowhere."""
        return replace(self, source=Source(self.source.keys, self.source.values))

    def select(self, rows: Tensor) -> SharedWindow:
        """The rows ``rows [M]`` int64."""
        return SharedWindow(
            self.source,
            self.windows.select(rows // self.copies),
            None if self.own_keys is None else self.own_keys[rows],
            None if self.own_values is None else self.own_values[rows],
        )

    def fold(self) -> SharedWindow:
        """``R`` prefixes that hold their own tokens, and nothing outside their windows."""
        count, device = len(self.windows.row) * self.copies, self.windows.row.device
        rows = self.select(torch.arange(count, device=device))
        windows, size = rows.windows, self.windows.window
        keys, values = self.source.rows(windows.index(self.source.keys.shape[1]))
        if rows.own_keys is not None and rows.own_values is not None:
            keys = torch.cat([keys, rows.own_keys], 1)
            values = torch.cat([values, rows.own_values], 1)
        surplus = max(keys.shape[1] - (size - 1), 0)
        keys, values = keys[:, surplus:], values[:, surplus:]
        if surplus:  # a view would keep what it leaves out
            keys, values = keys.contiguous(), values.contiguous()
        seen = (windows.count + rows.num_own).clamp(max=size - 1)
        end = torch.full_like(seen, keys.shape[1])
        number = torch.arange(count, device=device)
        return SharedWindow(Source(keys, values), Windows(number, end, seen, size, whole=True))

    def gathered(self) -> SharedWindow:
        """The same rows, whose windows lie side by side, head by head, and are read as they lie."""
        if self.own_keys is not None:
            return self
        rows = replace(self, windows=replace(self.windows, copies=1)).fold()
        keys, values = (
            x.transpose(1, 2).contiguous().transpose(1, 2)
            for x in (rows.source.keys, rows.source.values)
        )
        return replace(rows, source=Source(keys, values)).fork(self.copies)

    def fork(self, n: int) -> SharedWindow:
        """Every row ``n`` times, sharing its prefix."""
        rows = self if self.copies == 1 and self.own_keys is None else self.fold()
        return replace(rows, windows=replace(rows.windows, copies=n))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, SharedWindow]:
        """Read ``t`` tokens ``[R, t, H, d]`` of each of the ``R`` rows; made for a few tokens.

        Returns:
            ``[R, t, H, d]``, and the window after the tokens.
        """
        if self.own_keys is not None and self.own_values is not None:
            k = torch.cat([self.own_keys.to(k.dtype), k], 1)
            v = torch.cat([self.own_values.to(v.dtype), v], 1)
        after = replace(self, own_keys=k, own_values=v)
        result = attend(Asked(q, k, v), self.windows, self.source)
        if after.num_own >= (FOLD_AT if self.copies == 1 else FOLD_COPIES_AT):
            after = after.fold()
        return result, after
