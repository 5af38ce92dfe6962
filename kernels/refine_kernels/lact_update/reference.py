"""LaCT's fast weights by their definition: slow, and plainly right.

For each chunk, ``f(q)`` with the weights from before it; then the weights move along the gradient
of ``sum_i <f(k_i), v_i>``, in which each token and each matrix has a rate of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refine_kernels.lact_update.step import newton_schulz
from refine_kernels.lact_update.weights import FastTokens, FastWeights, UpdateRule
from refine_kernels.records import map_numbers


def _f(w0: Tensor, w1: Tensor, w2: Tensor, x: Tensor) -> Tensor:
    return w1 @ (torch.nn.functional.silu(w0 @ x) * (w2 @ x))


def _gradient(weights: FastWeights, k: Tensor, v: Tensor, rates: Tensor) -> FastWeights:
    """The sum over tokens of the gradients of ``<f(k_i), v_i>``, each times its rates."""

    def score(w0: Tensor, w1: Tensor, w2: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return _f(w0, w1, w2, key) @ value

    total = weights.map(torch.zeros_like)
    for i in range(k.shape[0]):
        found = torch.func.grad(score, argnums=(0, 1, 2))(*weights, k[i], v[i])
        scaled = (rate * d for rate, d in zip(rates[i], found, strict=True))
        total = map_numbers(torch.add, total, FastWeights(*scaled))
    return total


def lact_reference(
    q: Tensor, tokens: FastTokens, initial: FastWeights, rule: UpdateRule
) -> tuple[Tensor, FastWeights]:
    """One head of one row: ``q [T, d]`` and tokens of the same shape, with ``r = 1``.

    Returns:
        ``f(q) [T, d]`` and the weights that were applied to the last chunk.
    """
    size = rule.chunk_size
    main = applied = initial
    last = initial.map(torch.zeros_like)
    outputs = []
    for i in range(0, q.shape[0], size):
        if i > 0:
            here = slice(i - size, i)
            found = _gradient(applied, tokens.k[here], tokens.v[here], tokens.rates[here])
            if tokens.momentum is not None:
                keep = tokens.momentum[here].mean()
                found = map_numbers(lambda d, e, keep=keep: d + keep * e, found, last)
                last = found
            if rule.muon is not None:
                found = found.map(lambda d: newton_schulz(d, d.dtype))
            main = map_numbers(torch.add, main, found)
            applied = map_numbers(
                lambda w, w_0: (
                    w / (w.norm(dim=-1, keepdim=True) + 1e-5) * w_0.norm(dim=-1, keepdim=True)
                ),
                main,
                initial,
            )
            if not rule.prenorm:
                main = applied
        outputs += [_f(*applied, x) for x in q[i : i + size]]
    return torch.stack(outputs), applied
