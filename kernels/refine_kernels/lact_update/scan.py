"""Whole rows in chunks: update after update, then read each with the weights that entered it."""

from __future__ import annotations

from torch import Tensor

from refine_kernels.lact_update.directions import Written, direction
from refine_kernels.lact_update.reading import read
from refine_kernels.lact_update.step import step
from refine_kernels.lact_update.terms import Terms
from refine_kernels.lact_update.weights import FastState, FastTokens, FastWeights, UpdateRule


def scan(
    q: Tensor,
    tokens: FastTokens,
    state: FastState,
    norms: FastWeights,
    rule: UpdateRule,
    terms: Terms,
) -> tuple[Tensor, list[FastState]]:
    """Read ``E`` tokens of ``B`` rows of ``H`` heads, all rows at the start of a chunk.

    Args:
        q: ``[B, E, H, d]``.
        tokens: keys, values, rates and momentum of the same tokens.
        state: what enters the first chunk, matrices ``[B, H, ...]``.
        norms: of the rows of the initial weights, ``[H, rows, 1]``.
        rule: how the weights change.
        terms: how the element-wise work is done.

    Returns:
        ``f(q) [B, E, H, d]`` in q's type, and what enters each chunk, ``ceil(E / chunk_size)``
        states: the last chunk, complete or not, is read but does not update.
    """
    dtype = state.applied.w0.dtype
    written = Written.of(*(x.to(dtype) for x in tokens[:3]))
    size, length = rule.chunk_size, q.shape[1]
    entering = [state]
    for first in range(0, length - size, size):
        keep = None
        if tokens.momentum is not None:
            keep = tokens.momentum[:, first : first + size].to(dtype).mean(1)
        found, written = direction(state.applied, written, first, first + size, terms)
        state = step(state, found, keep, norms, rule)
        entering.append(state)
    # What is read changes no weights, so all chunks are read at once.
    output = read([each.applied for each in entering], q.to(dtype), size, terms)
    return output.to(q.dtype), entering
