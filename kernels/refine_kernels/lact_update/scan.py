"""Whole rows in chunks: read with the weights that enter a chunk, then update them."""

from __future__ import annotations

import torch
from torch import Tensor

from refine_kernels.lact_update.chunk import direction, read
from refine_kernels.lact_update.step import step
from refine_kernels.lact_update.weights import FastState, FastTokens, FastWeights, UpdateRule

# Heads from this width on are read where they lie; narrower ones are copied side by side first.
WIDE = 128


def scan(
    q: Tensor, tokens: FastTokens, state: FastState, norms: FastWeights, rule: UpdateRule
) -> tuple[Tensor, list[FastState]]:
    """Read ``E`` tokens of ``B`` rows of ``H`` heads, all rows at the start of a chunk.

    Args:
        q: ``[B, E, H, d]``.
        tokens: keys, values, rates and momentum of the same tokens.
        state: what enters the first chunk, matrices ``[B, H, ...]``.
        norms: of the rows of the initial weights, ``[H, rows, 1]``.
        rule: how the weights change.

    Returns:
        ``f(q) [B, E, H, d]`` in q's type, and what enters each chunk, ``ceil(E / chunk_size)``
        states: the last chunk, complete or not, is read but does not update.
    """
    batch, _, heads, _ = q.shape
    dtype = state.applied.w0.dtype

    def chunks(x: Tensor) -> tuple[Tensor, ...]:  # [B, E, H, w] to [B * H, C, w] each
        x = x.to(dtype).transpose(1, 2)
        if x.shape[-1] < WIDE:
            x = x.contiguous()
        return x.flatten(0, 1).split(rule.chunk_size, 1)

    pieces = list(zip(chunks(q), *(chunks(x) for x in tokens[:3]), strict=True))
    keep: list[Tensor | None] = [None] * len(pieces)
    if tokens.momentum is not None:
        each = chunks(tokens.momentum[..., None])
        keep = [piece.mean((1, 2)) for piece in each]
    flat_norms = norms.map(lambda n: n.expand(batch, *n.shape).flatten(0, 1))
    current = state.map(lambda w: w.flatten(0, 1))
    outputs, entering = [], []
    for i, (queries, k, v, rates) in enumerate(pieces):
        entering.append(current.map(lambda w: w.unflatten(0, (batch, heads))))
        output = read(current.applied, queries)
        outputs.append(output.unflatten(0, (batch, heads)).transpose(1, 2))
        if i + 1 < len(pieces):
            found = direction(current.applied, k, v, rates)
            current = step(current, found, keep[i], flat_norms, rule)
    return torch.cat(outputs, 1).to(q.dtype), entering
