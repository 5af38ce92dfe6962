"""Whole rows in chunks: update after update, then read each with the weights that entered it."""

from __future__ import annotations

from torch import Tensor

from refine_kernels.lact_update.chunk import direction, read
from refine_kernels.lact_update.step import step
from refine_kernels.lact_update.weights import FastState, FastTokens, FastWeights, UpdateRule


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
    dtype = state.applied.w0.dtype

    def chunks(x: Tensor) -> tuple[Tensor, ...]:
        return x.to(dtype).split(rule.chunk_size, 1)

    pieces = list(zip(*(chunks(x) for x in tokens[:3]), strict=True))
    keep: list[Tensor | None] = [None] * len(pieces)
    if tokens.momentum is not None:
        keep = [piece.mean(1) for piece in chunks(tokens.momentum)]
    entering = [state]
    for i, (k, v, rates) in enumerate(pieces[:-1]):
        found = direction(state.applied, k, v, rates)
        state = step(state, found, keep[i], norms, rule)
        entering.append(state)
    # What is read changes no weights, so all chunks are read at once.
    output = read([each.applied for each in entering], q.to(dtype), rule.chunk_size)
    return output.to(q.dtype), entering
