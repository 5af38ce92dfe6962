"""``f(q)`` with a backward pass of its own; the maths is in this folder's README."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from refine_kernels.lact_update.blocks import as_rows, blocks
from refine_kernels.lact_update.terms import EAGER, Terms
from refine_kernels.lact_update.weights import FastWeights


def read(weights: Sequence[FastWeights], q: Tensor, size: int, terms: Terms = EAGER) -> Tensor:
    """``f(q)``: ``[B, M, H, d]`` to the same shape, with other weights for every chunk.

    Args:
        weights: of each chunk, ``[B, H, ...]``.
        q: all chunks' queries.
        size: tokens of a chunk; the last one may have fewer.
        terms: how the element-wise work is done.
    """
    return _Read.apply(terms, q, size, *(w for each in weights for w in each))


def _chunks(size: int, *tokens: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(x.split(size, 1) for x in tokens), strict=True)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, terms: Terms, q: Tensor, size: int, *weights: Tensor) -> Tensor:
        output = q.new_empty(q.shape)
        between: list[Tensor] = []
        for i, (queries, out) in enumerate(_chunks(size, q, output)):
            for block in blocks(queries, weights[0].shape[-2]):
                w, x = block.sets(weights[3 * i : 3 * i + 3]), block.take(queries)
                a, b = x @ w.w0.mT, x @ w.w2.mT
                hidden = terms.hidden(*as_rows(a, b)).view_as(a)
                block.put(out, torch.bmm(hidden, w.w1.mT, out=block.room(out)))
                if any(ctx.needs_input_grad):
                    between += [a, b]
        ctx.terms, ctx.size, ctx.num_weights = terms, size, len(weights)
        ctx.save_for_backward(q, *weights, *between)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, *rest = ctx.saved_tensors
        weights, between = rest[: ctx.num_weights], iter(rest[ctx.num_weights :])
        d_q, d_weights = torch.empty_like(q), [torch.zeros_like(w) for w in weights]
        with torch.autocast(q.device.type, enabled=False):
            for i, tokens in enumerate(_chunks(ctx.size, q, grads[0], d_q)):
                here = slice(3 * i, 3 * i + 3)
                _backward(ctx.terms, tokens, weights[here], between, d_weights[here])
        return None, d_q, None, *d_weights


def _backward(
    terms: Terms,
    tokens: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    between: Iterator[Tensor],
    d_weights: Sequence[Tensor],
) -> None:
    """One chunk, given queries, the output's gradients, and where those of the queries go."""
    q, d_output, d_q = tokens
    for block in blocks(q, weights[0].shape[-2]):
        a, b = next(between), next(between)
        queries, d_out = block.copy(q), block.copy(d_output)
        w, d_w = block.sets(weights), block.sets(d_weights)
        found = terms.hidden_backward(*as_rows(a, b, d_out @ w.w1))
        hidden, d_a, d_b = (x.view_as(a) for x in found)
        d_w.w1.baddbmm_(d_out.mT, hidden)
        d_w.w0.baddbmm_(d_a.mT, queries)
        d_w.w2.baddbmm_(d_b.mT, queries)
        block.put(d_q, torch.bmm(d_a, w.w0, out=block.room(d_q)).baddbmm_(d_b, w.w2))
