"""Reading and directions with few and large products: for GPUs, and for bfloat16 operands.

The same as ``reading.py`` and ``directions.py``, which work through blocks that fit the cache of a
CPU. Here matrices that share an operand lie side by side, so that one product serves both; where
products are summed, one longer product does so in float32; and all full chunks are read at once.

    [a | b] = k [w0; w2]^T                       [d0; d2] = [m0 | m2]^T k
    d_k = [d_a | d_b | m0 | m2] [w0; w2; D0; D2]      d_v = [m1 | d_e] [D1 | w1]^T
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine_kernels.lact_update import terms
from refine_kernels.lact_update.directions import Written, later
from refine_kernels.lact_update.precision import product
from refine_kernels.lact_update.weights import FastWeights


class StackedTerms(NamedTuple):
    """What lies between the products, on rows ``[n, ...]`` of operands; computed in float32.

    ``hidden(ab) -> hidden``; ``hidden_backward(ab, d_hidden) -> d_ab, hidden``;
    ``written(ab, e, rates, per_channel) -> m02, m1``;
    ``written_backward(ab, e, x02, x1, rates, per_channel) -> [d_a|d_b|m0|m2], [m1|d_e], d_rates``.
    """

    hidden: Callable[..., Tensor]
    hidden_backward: Callable[..., tuple[Tensor, Tensor]]
    written: Callable[..., tuple[Tensor, Tensor]]
    written_backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


def _wide(*tensors: Tensor) -> list[Tensor]:
    return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]


def _halves(ab: Tensor) -> tuple[Tensor, Tensor]:
    a, b = (x.contiguous() for x in _wide(ab)[0].chunk(2, -1))
    return a, b


def _hidden(ab: Tensor) -> Tensor:
    return terms.hidden(*_halves(ab)).to(ab.dtype)


def _hidden_backward(ab: Tensor, d_hidden: Tensor) -> tuple[Tensor, Tensor]:
    hidden, d_a, d_b = terms.hidden_backward(*_halves(ab), *_wide(d_hidden))
    return torch.cat([d_a, d_b], -1).to(ab.dtype), hidden.to(ab.dtype)


def _written(ab: Tensor, e: Tensor, rates: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    a, b = _halves(ab)
    m0, m1, m2 = terms.written(a, b, _wide(e)[0], rates, per_channel)
    return torch.cat([m0, m2], -1).to(ab.dtype), m1.to(ab.dtype)


def _written_backward(
    ab: Tensor, e: Tensor, x02: Tensor, x1: Tensor, rates: Tensor, per_channel: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x0, x2 = _halves(x02)
    wide_e, wide_x1 = _wide(e, x1)
    one = terms.written_backward(*_halves(ab), wide_e, x0, wide_x1, x2, rates, per_channel)
    four = torch.cat([one.d_a, one.d_b, one.m0, one.m2], -1)
    return four.to(ab.dtype), torch.cat([one.m1, one.d_e], -1).to(ab.dtype), one.d_rates


BY_TORCH = StackedTerms(_hidden, _hidden_backward, _written, _written_backward)


def stacked_direction(
    weights: FastWeights, tokens: Written, first: int, last: int, how: StackedTerms
) -> tuple[FastWeights, Written]:
    """As :func:`refine_kernels.lact_update.directions.direction`, for tokens of operands' type."""
    found = _Direction.apply((how, first, last), *weights, *tokens)
    return FastWeights(*found[:3]), Written(*found[3:])


def _groups(x: Tensor) -> Tensor:
    """Tokens ``[B, m, H, w]`` as ``[B * H, m, w]``, in place if there is one row."""
    return x.transpose(1, 2).flatten(0, 1)


def _back(x: Tensor, like: Tensor) -> None:
    """Write ``x [B * H, m, w]`` to tokens ``like [B, m, H, w]``."""
    like.transpose(1, 2).copy_(x.view(like.shape[0], like.shape[2], like.shape[1], -1))


class _Side(NamedTuple):
    """Two matrices ``[B, H, h, d]`` one below the other, and the third, as operands."""

    into: Tensor  # [B * H, 2h, d]
    out: Tensor  # [B * H, d, h]

    @classmethod
    def of(cls, w0: Tensor, w1: Tensor, w2: Tensor, dtype: torch.dtype) -> _Side:
        both = torch.stack([w0, w2], 2).to(dtype)
        return cls(both.flatten(2, 3).flatten(0, 1), w1.to(dtype).flatten(0, 1))


class _Direction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, settings: tuple[StackedTerms, int, int], *given: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        how, first, last = settings
        (w0, w1, w2), tokens = FastWeights(*given[:3]), Written(*given[3:])  # type: ignore[arg-type]
        v, rates, k, *scaled = (_groups(x) for x in tokens.part(first, last) if x is not None)
        inner = w0.shape[-2]
        w = _Side.of(w0, w1, w2, k.dtype)
        ab, e = product(k, w.into.mT, k.dtype), product(v, w.out, k.dtype)
        m02, m1 = how.written(*_rows(ab, e, rates), bool(scaled))
        m02, m1 = m02.view_as(ab), m1.view_as(e)
        if scaled:
            pairs = zip(m02.split(inner, -1), scaled, strict=True)
            d0, d2 = (product(m.mT, x, w0.dtype).view_as(w0) for m, x in pairs)
        else:
            both = product(m02.mT, k, w0.dtype).view(*w0.shape[:2], 2, *w0.shape[2:])
            d0, d2 = both.unbind(2)
        d1 = product(v.mT, m1, w0.dtype).view_as(w1)
        ctx.save_for_backward(*given, ab, e)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        return d0, d1, d2, *tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        how, first, last = ctx.settings
        *given, ab, e = ctx.saved_tensors
        weights, tokens = FastWeights(*given[:3]), Written(*given[3:])
        d_tokens = Written(
            *(later(last, x, d) for x, d in zip(tokens, grads[3:], strict=True))  # type: ignore[arg-type]
        )
        here, wanted = tokens.part(first, last), d_tokens.part(first, last)
        if all(d is None for d in grads[:3]):  # nothing came of what was written
            for place in wanted:
                if place is not None:
                    place.zero_()
            return None, None, None, None, *d_tokens
        pairs = zip(weights, grads[:3], strict=True)
        d_found = FastWeights(*(torch.zeros_like(w) if d is None else d for w, d in pairs))
        # States must not be rounded by an autocast around the backward pass.
        with torch.autocast(here.k.device.type, enabled=False):
            d_weights = _backward(how, weights, here, (ab, e), d_found, wanted)
        return None, *d_weights, *d_tokens


def _backward(
    how: StackedTerms,
    weights: FastWeights,
    tokens: Written,
    between: tuple[Tensor, Tensor],
    d_found: FastWeights,
    wanted: Written,
) -> tuple[Tensor, Tensor, Tensor]:
    """The weights' gradients of one chunk; those of its tokens are written where wanted."""
    v, rates, k, *scaled = (_groups(x) for x in tokens if x is not None)
    w0, w1, _ = weights
    kind, inner = k.dtype, w0.shape[-2]
    w, d = _Side.of(*weights, kind), _Side.of(*d_found, kind)
    if scaled:
        pairs = zip(scaled, d.into.split(inner, 1), strict=True)
        x02 = torch.cat([product(x, part.mT, kind) for x, part in pairs], -1)
    else:
        x02 = product(k, d.into.mT, kind)
    rows = _rows(*between, x02, product(v, d.out, kind), rates)
    four, two, d_rates = how.written_backward(*rows, bool(scaled))
    four, two = four.view(*k.shape[:2], -1), two.view(*k.shape[:2], -1)
    d_ab, m02 = four.chunk(2, -1)
    both = product(d_ab.mT, k, w0.dtype).view(*w0.shape[:2], 2, *w0.shape[2:])
    d_w1 = product(v.mT, two[..., inner:], w0.dtype).view_as(w1)
    d_v = product(two, torch.cat([d.out, w.out], -1).mT, kind)
    if scaled:
        pairs = zip(m02.split(inner, -1), d.into.split(inner, 1), strict=True)
        d_keys = [product(d_ab, w.into, kind), *(product(m, part, kind) for m, part in pairs)]
    else:
        d_keys = [product(four, torch.cat([w.into, d.into], 1), kind)]
    places = [x for x in wanted if x is not None]
    for place, part in zip(places, (d_v, d_rates, *d_keys), strict=True):
        _back(part.view(*k.shape[:2], -1), place)
    d_w0, d_w2 = both.unbind(2)
    return d_w0, d_w1, d_w2


def _rows(*tensors: Tensor) -> list[Tensor]:
    """``[G, m, w]`` as rows ``[G * m, w]`` side by side."""
    return [x.contiguous().flatten(0, 1) for x in tensors]


def stacked_read(weights: Sequence[FastWeights], q: Tensor, size: int, how: StackedTerms) -> Tensor:
    """As :func:`refine_kernels.lact_update.reading.read`, for queries of the operands' type."""
    return _Read.apply(how, q, size, *(w for each in weights for w in each))


class _Chunks(NamedTuple):
    """Some chunks of one length, and the number of each."""

    tokens: slice
    numbers: range

    def take(self, x: Tensor) -> Tensor:
        """Of tokens ``[B, M, H, w]`` these chunks' ``[B * H * n, c, w]``."""
        x = x[:, self.tokens].unflatten(1, (len(self.numbers), -1))
        return x.permute(0, 3, 1, 2, 4).flatten(0, 2)

    def put(self, x: Tensor, like: Tensor) -> None:
        """The inverse of :meth:`take`, into ``like``."""
        place = like[:, self.tokens].unflatten(1, (len(self.numbers), -1)).permute(0, 3, 1, 2, 4)
        place.copy_(x.view(place.shape))

    def sides(self, weights: Sequence[Tensor], dtype: torch.dtype) -> _Side:
        """These chunks' weights, in the order of the tokens."""
        into = [w for i in self.numbers for w in (weights[3 * i], weights[3 * i + 2])]
        out = torch.stack([weights[3 * i + 1] for i in self.numbers], 2).to(dtype)
        both = torch.stack(into, 2).to(dtype).unflatten(2, (-1, 2)).flatten(3, 4)
        return _Side(both.flatten(0, 2), out.flatten(0, 2))


def _chunks(length: int, size: int) -> Iterator[_Chunks]:
    """The full chunks, then the last one if it is shorter."""
    full = length // size
    if full:
        yield _Chunks(slice(0, full * size), range(full))
    if length % size:
        yield _Chunks(slice(full * size, length), range(full, full + 1))


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: StackedTerms, q: Tensor, size: int, *weights: Tensor) -> Tensor:
        output, between = torch.empty_like(q), []
        for chunks in _chunks(q.shape[1], size):
            w, x = chunks.sides(weights, q.dtype), chunks.take(q)
            ab = product(x, w.into.mT, q.dtype)
            hidden = how.hidden(*_rows(ab)).view(*x.shape[:2], -1)
            chunks.put(product(hidden, w.out.mT, q.dtype), output)
            between.append(ab)
        ctx.how, ctx.size, ctx.num_weights = how, size, len(weights)
        ctx.save_for_backward(q, *weights, *between)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, *rest = ctx.saved_tensors
        weights, between = rest[: ctx.num_weights], rest[ctx.num_weights :]
        d_q, d_weights = torch.empty_like(q), []
        with torch.autocast(q.device.type, enabled=False):
            for chunks, ab in zip(_chunks(q.shape[1], ctx.size), between, strict=True):
                d_weights += _read_backward(ctx.how, chunks, weights, (q, grads[0], d_q), ab)
        return None, d_q, None, *d_weights


def _read_backward(
    how: StackedTerms,
    chunks: _Chunks,
    weights: Sequence[Tensor],
    tokens: tuple[Tensor, Tensor, Tensor],
    ab: Tensor,
) -> list[Tensor]:
    """The weights' gradients; the ``tokens`` are queries, the output's gradients, their own."""
    q, d_output, d_q = tokens
    w, x, d_out = chunks.sides(weights, q.dtype), chunks.take(q), chunks.take(d_output)
    d_ab, hidden = how.hidden_backward(*_rows(ab, product(d_out, w.out, q.dtype)))
    d_ab, hidden = d_ab.view_as(ab), hidden.view(*x.shape[:2], -1)
    chunks.put(product(d_ab, w.into, q.dtype), d_q)
    (w0, w1), count = weights[:2], len(chunks.numbers)
    into = product(d_ab.mT, x, w0.dtype).view(*w0.shape[:2], count, 2, *w0.shape[2:])
    out = product(d_out.mT, hidden, w0.dtype).view(*w1.shape[:2], count, *w1.shape[2:])
    return [d for i in range(count) for d in (into[:, :, i, 0], out[:, :, i], into[:, :, i, 1])]
