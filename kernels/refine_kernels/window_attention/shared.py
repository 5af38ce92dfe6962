"""The window's keys and values after a prefix, shared between rows that continue it.

``R = G * N`` rows continue ``G`` prefixes, ``N`` rows each. A row's window is the last
``window - 1`` tokens of its prefix, which its copies share, and its own tokens since.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refine_kernels.records import rows_of

# Tokens of its own after which a row copies what it shares: rarely when there is much to copy.
FOLD_AT, FOLD_COPIES_AT = 16, 64


@dataclass(frozen=True, slots=True)
class SharedWindow:
    """``R = G * N`` rows over ``G`` prefixes."""

    keys: Tensor  # [X, E, H, d] that the prefixes' windows lie in
    values: Tensor  # [X, E, H, d]
    row: Tensor  # [G] int64, row of keys and values
    end: Tensor  # [G] int64, where in it the prefix ends
    count: Tensor  # [G] int64, tokens of the prefix that can be seen, at most window - 1
    window: int  # tokens that each sees, itself included
    copies: int = 1  # N
    own_keys: Tensor | None = None  # [R, o, H, d] read since
    own_values: Tensor | None = None  # [R, o, H, d]

    @property
    def num_own(self) -> int:
        """Tokens that each row has read since its prefix."""
        return 0 if self.own_keys is None else self.own_keys.shape[1]

    def select(self, rows: Tensor) -> SharedWindow:
        """The rows ``rows [M]`` int64."""
        group = rows // self.copies
        return replace(
            self,
            row=self.row[group],
            end=self.end[group],
            count=self.count[group],
            copies=1,
            own_keys=None if self.own_keys is None else self.own_keys[rows],
            own_values=None if self.own_values is None else self.own_values[rows],
        )

    def prefix(self) -> tuple[Tensor, Tensor]:
        """Keys and values ``[G, P, H, d]``, the last ones those of the prefix's last token.

        Only a row's last ``count`` ones are real.
        """
        length = self.keys.shape[1]
        width = min(self.window - 1, length)
        index = self.end[:, None] - width + torch.arange(width, device=self.end.device)
        index = index.clamp(0, max(length - 1, 0)) + self.row[:, None] * length
        return rows_of(self.keys, index), rows_of(self.values, index)

    def fold(self) -> SharedWindow:
        """``R`` prefixes that hold their own tokens, and nothing outside their windows."""
        rows = self.select(torch.arange(len(self.row) * self.copies, device=self.row.device))
        keys, values = rows.prefix()
        if rows.own_keys is not None and rows.own_values is not None:
            keys = torch.cat([keys, rows.own_keys], 1)
            values = torch.cat([values, rows.own_values], 1)
        surplus = max(keys.shape[1] - (self.window - 1), 0)
        keys, values = keys[:, surplus:], values[:, surplus:]
        if surplus:  # a view would keep what it leaves out
            keys, values = keys.contiguous(), values.contiguous()
        count = (rows.count + rows.num_own).clamp(max=self.window - 1)
        number = torch.arange(len(count), device=count.device)
        end = torch.full_like(count, keys.shape[1])
        return SharedWindow(keys, values, number, end, count, self.window)

    def fork(self, n: int) -> SharedWindow:
        """Every row ``n`` times, sharing its prefix."""
        rows = self if self.copies == 1 and self.own_keys is None else self.fold()
        return replace(rows, copies=n)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, SharedWindow]:
        """Read ``t`` tokens ``[R, t, H, d]`` of each of the ``R`` rows; made for a few tokens.

        Returns:
            ``[R, t, H, d]``, and the window after the tokens.
        """
        earlier, length = self.num_own, q.shape[1]
        if self.own_keys is not None and self.own_values is not None:
            k = torch.cat([self.own_keys.to(k.dtype), k], 1)
            v = torch.cat([self.own_values.to(v.dtype), v], 1)
        after = replace(self, own_keys=k, own_values=v)
        keys, values = (x.to(q.dtype) for x in self.prefix())
        width = keys.shape[1]
        device = q.device
        time = torch.arange(earlier, earlier + length, device=device)[:, None]
        own = torch.arange(earlier + length, device=device)
        hidden_own = (own > time) | (own <= time - self.window)  # [t, o + t]
        away = width - torch.arange(width, device=device)  # to the prefix's end
        hidden = (away > self.count[:, None])[:, None] | (away + time >= self.window)  # [G, t, P]

        def by_prefix(x: Tensor) -> Tensor:  # [R, t, H, d] to [G, H, N * t, d]
            return x.unflatten(0, (-1, self.copies)).flatten(1, 2).transpose(1, 2)

        scale = q.shape[-1] ** -0.5
        shared = by_prefix(q * scale) @ keys.permute(0, 2, 3, 1)  # [G, H, N * t, P]
        shared = shared.unflatten(2, (self.copies, length)).transpose(1, 2).flatten(0, 1)
        hidden = hidden[:, None, None].expand(-1, self.copies, -1, -1, -1).flatten(0, 1)
        scores = torch.cat(
            [
                shared.masked_fill(hidden, -torch.inf),
                ((q * scale).transpose(1, 2) @ k.permute(0, 2, 3, 1)).masked_fill(
                    hidden_own, -torch.inf
                ),
            ],
            -1,
        )
        # [R, H, t, P + o + t]
        weights = scores.to(torch.promote_types(q.dtype, torch.float32)).softmax(-1).to(q.dtype)
        output = weights[..., width:] @ v.transpose(1, 2)
        seen = weights[..., :width].transpose(1, 2)  # [R, t, H, P]
        seen = by_prefix(seen) @ values.transpose(1, 2)  # [G, H, N * t, d]
        seen = seen.unflatten(2, (self.copies, length)).transpose(1, 2).flatten(0, 1)
        result = (output + seen).transpose(1, 2)
        if after.num_own >= (FOLD_AT if self.copies == 1 else FOLD_COPIES_AT):
            after = after.fold()
        return result, after
