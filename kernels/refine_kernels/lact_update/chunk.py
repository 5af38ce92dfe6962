"""The two halves of a chunk, with backward passes of their own.

Reading: ``f(q)``. Writing: the direction in the fast weights that increases
``sum_i rate_i <f(k_i), v_i>``. Tokens are ``[B, M, H, w]``, sets of weights ``[B, H, ...]``. The
maths is in this folder's README. Both run over blocks, so that what lies between the matrix
products stays in the processor's cache, and both read and write tokens where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from refine_kernels.lact_update.weights import FastWeights

# Elements of what a block holds between two products, by the type of device; and the tokens that it
# should have before it takes in another head.
BLOCK_ELEMENTS = {"cpu": 2**17, "cuda": 2**26}
BLOCK_TOKENS = 256

_silu = torch.nn.functional.silu
_silu_backward = torch.ops.aten.silu_backward
_sigmoid_backward = torch.ops.aten.sigmoid_backward


def read(weights: Sequence[FastWeights], q: Tensor, size: int) -> Tensor:
    """``f(q)``: ``[B, M, H, d]`` to the same shape, with other weights for every chunk.

    Args:
        weights: of each chunk.
        q: all chunks' queries.
        size: tokens of a chunk; the last one may have fewer.
    """
    return _Read.apply(q, size, *(w for each in weights for w in each))


def direction(weights: FastWeights, k: Tensor, v: Tensor, rates: Tensor) -> FastWeights:
    """The direction of one chunk's keys and values ``[B, M, H, d]``, rates ``[B, M, H, 3 * r]``."""
    return FastWeights(*_Direction.apply(*weights, k, v, rates))


class _Block(NamedTuple):
    """Some rows, tokens and heads."""

    rows: slice
    tokens: slice
    heads: slice

    def sets(self, weights: Sequence[Tensor]) -> FastWeights:
        """Of weights ``[B, H, ...]`` the block's, ``[G, ...]``, in place if they are apart."""
        return FastWeights(*(w[self.rows, self.heads].flatten(0, 1) for w in weights))

    def take(self, x: Tensor) -> Tensor:
        """Of tokens ``[B, M, H, w]`` the block's, ``[G, m, w]``, in place if it is of one row."""
        return x[self.rows, self.tokens, self.heads].transpose(1, 2).flatten(0, 1)

    def put(self, x: Tensor, found: Tensor) -> None:
        """Write ``found [G, m, w]`` where :meth:`take` reads."""
        place = x[self.rows, self.tokens, self.heads].transpose(1, 2)
        place.copy_(found.view(place.shape))

    def put_products(self, x: Tensor, *pairs: tuple[Tensor, Tensor]) -> None:
        """Write the sum of matrix products there, without a copy if the block is of one row."""
        place = x[self.rows, self.tokens, self.heads].transpose(1, 2)
        result = place[0] if len(place) == 1 else x.new_empty(place.shape).flatten(0, 1)
        torch.bmm(*pairs[0], out=result)
        for a, b in pairs[1:]:
            result.baddbmm_(a, b)
        if len(place) > 1:
            place.copy_(result.view(place.shape))


def _blocks(tokens: Tensor, inner: int) -> Iterator[_Block]:
    """The blocks of a chunk's tokens ``[B, M, H, d]``."""
    batch, length, heads, _ = tokens.shape
    budget = BLOCK_ELEMENTS.get(tokens.device.type, 2**26)
    each = min(max(budget // (min(BLOCK_TOKENS, length) * inner), 1), heads)
    span = max(budget // (each * inner), 32)
    rows = max(span // length, 1) if each == heads else 1
    for row in range(0, batch, rows):
        for head in range(0, heads, each):
            for first in range(0, length, span):
                yield _Block(
                    slice(row, row + rows), slice(first, first + span), slice(head, head + each)
                )


def _chunks(size: int, *tokens: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(x.split(size, 1) for x in tokens), strict=True)


def _zeros(weights: Sequence[Tensor]) -> list[Tensor]:
    return [w.new_zeros(w.shape) for w in weights]


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, size: int, *weights: Tensor) -> Tensor:
        output = q.new_empty(q.shape)
        between: list[Tensor] = []
        for i, (queries, out) in enumerate(_chunks(size, q, output)):
            for block in _blocks(queries, weights[0].shape[-2]):
                w, x = block.sets(weights[3 * i : 3 * i + 3]), block.take(queries)
                a, b = x @ w.w0.mT, x @ w.w2.mT
                block.put_products(out, (_silu(a).mul_(b), w.w1.mT))
                if any(ctx.needs_input_grad):
                    between += [a, b]
        ctx.size, ctx.num_weights = size, len(weights)
        ctx.save_for_backward(q, *weights, *between)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_output,) = grads
        q, *rest = ctx.saved_tensors
        weights, between = rest[: ctx.num_weights], iter(rest[ctx.num_weights :])
        d_q, d_weights = q.new_empty(q.shape), _zeros(weights)
        with torch.autocast(q.device.type, enabled=False):
            for i, tokens in enumerate(_chunks(ctx.size, q, d_output, d_q)):
                here = slice(3 * i, 3 * i + 3)
                _read_backward(tokens, weights[here], between, d_weights[here])
        return d_q, None, *d_weights


def _read_backward(
    tokens: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    between: Iterator[Tensor],
    d_weights: Sequence[Tensor],
) -> None:
    """One chunk, given queries, the output's gradients, and where those of the queries go."""
    q, d_output, d_q = tokens
    for block in _blocks(q, weights[0].shape[-2]):
        a, b = next(between), next(between)
        queries, d_out = block.take(q), block.take(d_output)
        w, d_w = block.sets(weights), block.sets(d_weights)
        g = _silu(a)
        d_hidden = d_out @ w.w1
        d_w.w1.baddbmm_(d_out.mT, g * b)
        d_b = g.mul_(d_hidden)
        d_a = _silu_backward(d_hidden.mul_(b), a)
        d_w.w0.baddbmm_(d_a.mT, queries)
        d_w.w2.baddbmm_(d_b.mT, queries)
        block.put_products(d_q, (d_a, w.w0), (d_b, w.w2))


class _Direction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, w0: Tensor, w1: Tensor, w2: Tensor, k: Tensor, v: Tensor, rates: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = _zeros((w0, w1, w2))
        between: list[Tensor] = []
        for block in _blocks(k, w0.shape[-2]):
            w, d = block.sets((w0, w1, w2)), block.sets(found)
            keys, values = block.take(k), block.take(v)
            rate0, rate1, rate2 = block.take(rates).chunk(3, -1)
            a, b, e = keys @ w.w0.mT, keys @ w.w2.mT, values @ w.w1
            g = _silu(a)
            d.w1.baddbmm_(values.mT, (g * b).mul_(rate1))
            d.w2.baddbmm_(g.mul_(e).mT, keys * rate2)
            d.w0.baddbmm_(_silu_backward(e * b, a).mT, keys * rate0)
            if any(ctx.needs_input_grad):
                between += [a, b, e]
        ctx.save_for_backward(w0, w1, w2, k, v, rates, *between)
        return tuple(found)  # type: ignore[return-value]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        w0, w1, w2, k, v, rates, *between = ctx.saved_tensors
        given = _Side((w0, w1, w2), k, v, rates)
        wanted = _Side(_zeros(given.weights), *(x.new_empty(x.shape) for x in (k, v, rates)))
        with torch.autocast(k.device.type, enabled=False):
            for i, block in enumerate(_blocks(k, w0.shape[-2])):
                _direction_backward(block, given, between[3 * i : 3 * i + 3], grads, wanted)
        return *wanted.weights, *wanted[1:]


class _Side(NamedTuple):
    """The inputs of a direction, or their gradients."""

    weights: Sequence[Tensor]
    k: Tensor
    v: Tensor
    rates: Tensor


def _direction_backward(
    block: _Block,
    given: _Side,
    between: list[Tensor],
    d_found: tuple[Tensor, ...],
    wanted: _Side,
) -> None:
    """One block: adds to the wanted weights, and writes its part of the wanted tokens."""
    a, b, e = between
    k, v = block.take(given.k), block.take(given.v)
    rate0, rate1, rate2 = block.take(given.rates).chunk(3, -1)
    w, d, d_w = (block.sets(x) for x in (given.weights, d_found, wanted.weights))
    s = a.sigmoid()
    g = a * s
    slope = _sigmoid_backward(a, s).add_(s)  # of silu
    eb, hidden = e * b, g * b
    bent = _sigmoid_backward((a + 2).sub_(g, alpha=2).mul_(eb), s)  # by the slope's slope

    d_hidden = v @ d.w1
    d_rate1 = _to_rate(d_hidden, hidden, rate1)
    d_hidden.mul_(rate1)
    hidden.mul_(rate1)

    d_k = (g * e) @ d.w2
    d_rate2 = _to_rate(d_k, k, rate2)
    d_k.mul_(rate2)
    d_m2 = (k * rate2) @ d.w2.mT

    d_scaled = eb.mul_(slope) @ d.w0
    d_rate0 = _to_rate(d_scaled, k, rate0)
    d_k += d_scaled.mul_(rate0)
    d_m0 = (k * rate0) @ d.w0.mT

    d_a = (d_hidden * b).addcmul_(d_m2, e).mul_(slope).addcmul_(d_m0, bent)
    d_m0 *= slope
    d_e = d_m2.mul_(g).addcmul_(d_m0, b)
    d_b = d_hidden.mul_(g).addcmul_(d_m0, e)

    d_w.w0.baddbmm_(d_a.mT, k)
    d_w.w1.baddbmm_(v.mT, d_e)
    d_w.w2.baddbmm_(d_b.mT, k)
    block.put(wanted.k, d_k.baddbmm_(d_a, w.w0).baddbmm_(d_b, w.w2))
    block.put_products(wanted.v, (hidden, d.w1.mT), (d_e, w.w1.mT))
    block.put(wanted.rates, torch.cat([d_rate0, d_rate1, d_rate2], -1))


def _to_rate(gradient: Tensor, what: Tensor, rate: Tensor) -> Tensor:
    """The gradient of ``rate`` in ``rate * what``; one rate collects that of all channels."""
    if rate.shape[-1] == 1:
        return torch.linalg.vecdot(gradient, what)[..., None]
    return gradient * what
