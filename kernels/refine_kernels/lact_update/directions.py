"""What a chunk's keys and values write, with a backward pass of its own.

That is the direction in the fast weights that increases ``sum_i rate_i <f(k_i), v_i>``; the maths
is in this folder's README.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from refine_kernels.lact_update.blocks import Block, as_rows, blocks
from refine_kernels.lact_update.terms import EAGER, Terms
from refine_kernels.lact_update.weights import FastWeights


class Written(NamedTuple):
    """What writes to the fast weights: whole rows of tokens, of which a chunk is a part."""

    v: Tensor  # [B, E, H, d]
    rates: Tensor  # [B, E, H, 3], of w0, w1 and w2; or [B, E, H, h], of w1
    k: Tensor  # [B, E, H, d]
    k0: Tensor | None = None  # with a rate for each channel: the keys times those of w0
    k2: Tensor | None = None

    @classmethod
    def of(cls, k: Tensor, v: Tensor, rates: Tensor) -> Written:
        """Of keys, values and rates ``[B, E, H, 3 * r]``; r is 1, or a rate for each channel."""
        if rates.shape[-1] == 3:
            return cls(v, rates, k)
        rate0, rate1, rate2 = rates.chunk(3, -1)
        return cls(v, rate1, k, (k * rate0).to(k.dtype), (k * rate2).to(k.dtype))

    def part(self, first: int, last: int) -> Written:
        """The tokens from the ``first`` to before the ``last``."""
        return Written(*(None if x is None else x[:, first:last] for x in self))  # type: ignore[arg-type]


def direction(
    weights: FastWeights,
    tokens: Written,
    first: int = 0,
    last: int | None = None,
    terms: Terms = EAGER,
) -> tuple[FastWeights, Written]:
    """The direction of the tokens from the ``first`` to before the ``last`` (None: all).

    Returns:
        The direction ``[B, H, ...]``, and the tokens as they were. Who goes through the chunks of a
        row should take those to the next chunk: then all chunks' gradients are written into one
        tensor, where splitting the tokens would join as many tensors as there are chunks.
    """
    last = tokens.k.shape[1] if last is None else last
    found = _Direction.apply((terms, first, last), *weights, *tokens)
    return FastWeights(*found[:3]), Written(*found[3:])


class _Direction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, how: tuple[Terms, int, int], *given: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        terms, first, last = how
        weights, tokens = FastWeights(*given[:3]), Written(*given[3:])  # type: ignore[arg-type]
        here, found = tokens.part(first, last), [torch.zeros_like(w) for w in weights]
        between: list[Tensor] = []
        for block in blocks(here.k, weights.w0.shape[-2]):
            kept = _block_forward(terms, block, weights, here, found)
            if any(ctx.needs_input_grad):
                between += kept
        ctx.save_for_backward(*given, *between)
        ctx.how = how
        ctx.set_materialize_grads(False)
        return *found, *tokens

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        terms, first, last = ctx.how
        saved = ctx.saved_tensors  # checkpointing gives them once only
        weights, tokens, between = saved[:3], Written(*saved[3:8]), saved[8:]
        d_found = [
            torch.zeros_like(w) if d is None else d for w, d in zip(weights, grads, strict=False)
        ]
        d_weights = [torch.zeros_like(w) for w in weights]
        # Left by the chunks after this one, for it alone: this chunk's part is written into it.
        d_tokens = Written(
            *(later(last, x, d) for x, d in zip(tokens, grads[3:], strict=True))  # type: ignore[arg-type]
        )
        given = _Side(weights, tokens.part(first, last))
        wanted = _Side(d_weights, d_tokens.part(first, last))
        with torch.autocast(tokens.k.device.type, enabled=False):
            for i, block in enumerate(blocks(given.tokens.k, weights[0].shape[-2])):
                kept = between[3 * i : 3 * i + 3]
                _block_backward(terms, block, given, kept, d_found, wanted)
        return None, *d_weights, *d_tokens


def later(last: int, x: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """The gradient of ``x [B, E, ...]`` from token ``last`` on; before it may be any number."""
    if x is None or gradient is not None:
        return gradient
    gradient = torch.empty_like(x)
    gradient[:, last:] = 0
    return gradient


class _Side(NamedTuple):
    """The inputs of a direction, or their gradients."""

    weights: FastWeights | tuple[Tensor, ...] | list[Tensor]
    tokens: Written


def _block_forward(
    terms: Terms, block: Block, weights: FastWeights, tokens: Written, found: list[Tensor]
) -> list[Tensor]:
    """Adds a block's share to what is ``found``; returns what its backward pass reads."""
    w, d = block.sets(weights), block.sets(found)
    v, rates, k, *scaled = (block.copy(x) for x in tokens if x is not None)
    k0, k2 = scaled or (k, k)
    a, b, e = k @ w.w0.mT, k @ w.w2.mT, v @ w.w1
    terms_of = terms.written(*as_rows(a, b, e, rates), bool(scaled))
    m0, m1, m2 = (x.view_as(a) for x in terms_of)
    d.w0.baddbmm_(m0.mT, k0)
    d.w1.baddbmm_(v.mT, m1)
    d.w2.baddbmm_(m2.mT, k2)
    return [a, b, e]


def _block_backward(
    terms: Terms,
    block: Block,
    given: _Side,
    between: tuple[Tensor, ...],
    d_found: list[Tensor],
    wanted: _Side,
) -> None:
    """Adds a block's share to the wanted weights, and writes its part of the wanted tokens."""
    a, b, e = between
    v, rates, k, *scaled = (block.copy(x) for x in given.tokens if x is not None)
    k0, k2 = scaled or (k, k)
    w, d, d_w = (block.sets(x) for x in (given.weights, d_found, wanted.weights))
    x0, x1, x2 = k0 @ d.w0.mT, v @ d.w1, k2 @ d.w2.mT
    one = terms.written_backward(*as_rows(a, b, e, x0, x1, x2, rates), bool(scaled))
    m0, m1, m2, d_a, d_b, d_e = (x.view_as(a) for x in one[:6])
    d_w.w0.baddbmm_(d_a.mT, k)
    d_w.w1.baddbmm_(v.mT, d_e)
    d_w.w2.baddbmm_(d_b.mT, k)
    places = [x for x in wanted.tokens if x is not None]
    d_v, _, d_k, *d_scaled = (block.room(x) for x in places)
    torch.bmm(m1, d.w1.mT, out=d_v).baddbmm_(d_e, w.w1.mT)
    torch.bmm(d_a, w.w0, out=d_k).baddbmm_(d_b, w.w2)
    if scaled:
        torch.bmm(m0, d.w0, out=d_scaled[0])
        torch.bmm(m2, d.w2, out=d_scaled[1])
    else:
        d_k.baddbmm_(m0, d.w0).baddbmm_(m2, d.w2)
    for place, found in zip(places, (d_v, one.d_rates, d_k, *d_scaled), strict=True):
        block.put(place, found)
