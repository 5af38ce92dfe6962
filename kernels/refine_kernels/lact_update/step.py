"""From a chunk's direction to the next fast weights: momentum, orthogonalisation, row norms."""

from __future__ import annotations

import torch
from torch import Tensor

from refine_kernels.lact_update.weights import FastState, FastWeights, UpdateRule
from refine_kernels.records import map_numbers

_EPS = 1e-5

_NEWTON_SCHULZ = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def row_norms(weights: FastWeights) -> FastWeights:
    """The L2 norm of every row, ``[..., rows, 1]``."""
    return weights.map(lambda w: torch.linalg.vector_norm(w, dim=-1, keepdim=True))


def newton_schulz(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Five steps that take the singular values of ``matrix [..., m, n]`` near to 1.

    Args:
        matrix: what is orthogonalised.
        dtype: of the iteration; the result is of the type of ``matrix``.
    """
    x = matrix.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in _NEWTON_SCHULZ:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


def start(weights: FastWeights, rule: UpdateRule, momentum: bool) -> FastState:
    """The state of an empty text, given the initial weights."""
    last = weights.map(torch.zeros_like) if momentum else None
    return FastState(weights, weights if rule.prenorm else None, last)


def step(
    state: FastState,
    found: FastWeights,
    momentum: Tensor | None,
    norms: FastWeights,
    rule: UpdateRule,
) -> FastState:
    """The state that enters the next chunk.

    Args:
        state: what entered this one, matrices ``[G, ...]``.
        found: this chunk's direction, of the same shapes.
        momentum: ``[G]``, mean over the chunk; None: without momentum.
        norms: of the rows of the initial weights, ``[G, rows, 1]``.
        rule: how the weights change.
    """
    if momentum is not None and state.last is not None:
        keep = momentum[..., None, None]
        found = map_numbers(lambda new, old: torch.addcmul(new, old, keep), found, state.last)
    last = None if state.last is None else found
    if rule.muon is not None:
        rounded = rule.muon == torch.bfloat16
        dtype = rule.muon if rounded else torch.promote_types(rule.muon, found.w0.dtype)
        found = found.map(lambda d: newton_schulz(d, dtype))
    before = state.applied if state.main is None else state.main
    added = map_numbers(torch.add, before, found)
    applied = map_numbers(
        lambda w, norm, length: w * (norm / (length + _EPS)), added, norms, row_norms(added)
    )
    return FastState(applied, None if state.main is None else added, last)
