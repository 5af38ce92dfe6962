"""Softmax attention of rows to the windows of their prefixes and to their own tokens.

``R = G * N`` rows continue ``G`` prefixes. A row has read ``o`` tokens since its prefix, and asks
with ``t`` more. The gradients are those of the forward pass, which is done again for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from refine_kernels.window_attention.products import Gathered, InPlace


class Asked(NamedTuple):
    """What rows bring."""

    q: Tensor  # [R, t, H, d]
    k: Tensor  # [R, o + t, H, d], since the prefix
    v: Tensor  # [R, o + t, H, d]


class Written(NamedTuple):
    """What the gradients of windows are summed from, as ``products.outer`` sums it."""

    by_keys: Tensor  # [G, H, N * t, P]
    queries: Tensor  # [G, H, N * t, d]
    by_values: Tensor  # [G, H, N * t, P]
    outputs: Tensor  # [G, H, N * t, d]

    @property
    def pairs(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Of keys, and of values."""
        return (self.by_keys, self.queries), (self.by_values, self.outputs)


@dataclass(frozen=True, slots=True)
class Seen:
    """The windows, as they are looked at: ``P`` tokens side by side."""

    keys: Gathered | InPlace
    values: Gathered | InPlace
    width: int  # P
    distance: Tensor  # [G] int64, from the first of the tokens to the prefix's end
    count: Tensor  # [G] int64, those before the end that can be seen, at most window - 1
    window: int  # tokens that each sees, itself included
    copies: int  # N

    def read(self, asked: Asked) -> Tensor:
        """``[R, t, H, d]``."""
        return self._output(self._weights(asked).to(asked.q.dtype), asked)

    def gradients(self, asked: Asked, d_output: Tensor) -> tuple[Asked, Written]:
        """Of what the rows brought and of the windows, given the output's ``[R, t, H, d]``."""
        weights, d_scores = self._backward(asked, d_output)
        parts = [self.width, asked.k.shape[1]]
        shared, own = weights.to(d_output.dtype).split(parts, -1)
        d_shared, d_own = d_scores.split(parts, -1)
        scale = asked.q.shape[-1] ** -0.5
        scaled, outputs = (x.transpose(1, 2) for x in (asked.q * scale, d_output))
        written = Written(*map(self._by_prefix, (d_shared, scaled, shared, outputs)))
        d_q = d_own @ asked.k.transpose(1, 2)
        d_q = (d_q + self._by_row(self.keys.sums(written.by_keys))) * scale
        found = (d_q, d_own.mT @ scaled, own.mT @ outputs)
        return Asked(*(x.transpose(1, 2) for x in found)), written

    def _weights(self, asked: Asked) -> Tensor:
        """``[R, H, t, P + o + t]``, float32 or float64."""
        (q, k, _), width, device = asked, self.width, asked.q.device
        length = q.shape[1]
        earlier = k.shape[1] - length
        time = torch.arange(earlier, earlier + length, device=device)[:, None]
        own_time = torch.arange(earlier + length, device=device)
        hidden_own = (own_time > time) | (own_time <= time - self.window)  # [t, o + t]
        away = self.distance[:, None, None] - torch.arange(width, device=device)  # [G, 1, P]
        hidden = (away < 1) | (away > self.count[:, None, None]) | (away + time >= self.window)
        hidden = hidden[:, None, None].expand(-1, self.copies, -1, -1, -1).flatten(0, 1)
        q = (q * q.shape[-1] ** -0.5).transpose(1, 2)
        shared = self._by_row(self.keys.scores(self._by_prefix(q)))
        own = q @ k.permute(0, 2, 3, 1)
        scores = [(shared, hidden), (own, hidden_own)]
        joined = torch.cat([x.masked_fill(mask, -torch.inf) for x, mask in scores], -1)
        return joined.to(torch.promote_types(q.dtype, torch.float32)).softmax(-1)

    def _output(self, weights: Tensor, asked: Asked) -> Tensor:
        shared, own = weights.split([self.width, asked.k.shape[1]], -1)
        output = own @ asked.v.transpose(1, 2)
        return (output + self._by_row(self.values.sums(self._by_prefix(shared)))).transpose(1, 2)

    def _backward(self, asked: Asked, d_output: Tensor) -> tuple[Tensor, Tensor]:
        """Weights, and the scores' gradients in q's type, ``[R, H, t, P + o + t]``."""
        weights, d_output = self._weights(asked), d_output.transpose(1, 2)
        shared = self._by_row(self.values.scores(self._by_prefix(d_output)))
        d_weights = torch.cat([shared, d_output @ asked.v.permute(0, 2, 3, 1)], -1)
        d_weights = d_weights.to(weights.dtype)
        d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True))
        return weights, d_scores.to(asked.q.dtype)

    def _by_prefix(self, x: Tensor) -> Tensor:
        """``[R, H, t, ...]`` to ``[G, H, N * t, ...]``."""
        return x.unflatten(0, (-1, self.copies)).transpose(1, 2).flatten(2, 3)

    def _by_row(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`_by_prefix`."""
        return x.unflatten(2, (self.copies, -1)).transpose(1, 2).flatten(0, 1)
