"""The two halves of a chunk, with backward passes of their own.

Reading: ``f(q)``. Writing: the direction in the fast weights that increases
``sum_i rate_i <f(k_i), v_i>``. Tokens are rows: ``[G, M, d]`` for ``G`` sets of weights. The maths
is in this folder's README. Both run over blocks of tokens, so that what lies between the matrix
products stays in the processor's cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from refine_kernels.lact_update.weights import FastWeights

# Elements of what a block holds between two products, by the type of device.
BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**26}

_silu = torch.nn.functional.silu
_silu_backward = torch.ops.aten.silu_backward


def read(weights: FastWeights, q: Tensor) -> Tensor:
    """``f(q)``: ``[G, M, d]`` to the same shape."""
    return _Read.apply(*weights, q)


def direction(weights: FastWeights, k: Tensor, v: Tensor, rates: Tensor) -> FastWeights:
    """The direction of keys and values ``[G, M, d]`` with ``rates [G, M, 3 * r]``."""
    return FastWeights(*_Direction.apply(*weights, k, v, rates))


def _spans(tokens: Tensor, inner: int) -> list[slice]:
    """Blocks of the tokens ``[G, M, d]``."""
    budget = BLOCK_ELEMENTS.get(tokens.device.type, 2**26)
    size = max(budget // (tokens.shape[0] * inner), 32)
    return [slice(i, i + size) for i in range(0, tokens.shape[1], size)]


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w0: Tensor, w1: Tensor, w2: Tensor, q: Tensor) -> Tensor:
        w0_t, w1_t, w2_t = w0.mT, w1.mT, w2.mT
        output = torch.empty_like(q)
        between: list[Tensor] = []
        for here in _spans(q, w0.shape[1]):
            a, b = q[:, here] @ w0_t, q[:, here] @ w2_t
            between += [a, b]
            torch.bmm(_silu(a).mul_(b), w1_t, out=output[:, here])
        ctx.save_for_backward(w0, w1, w2, q, *between)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        (d_output,) = grads
        with torch.autocast(d_output.device.type, enabled=False):
            return _read_backward(ctx.saved_tensors, d_output)


def _read_backward(saved: tuple[Tensor, ...], d_output: Tensor) -> tuple[Tensor, ...]:
    w0, w1, w2, q, *between = saved
    d_w0, d_w1, d_w2 = (torch.zeros_like(w) for w in (w0, w1, w2))
    d_q = torch.empty_like(q)
    for i, here in enumerate(_spans(q, w0.shape[1])):
        a, b = between[2 * i : 2 * i + 2]
        queries, d_out = q[:, here], d_output[:, here]
        g = _silu(a)
        d_hidden = d_out @ w1
        d_w1.baddbmm_(d_out.mT, g * b)
        d_b = g.mul_(d_hidden)
        d_a = _silu_backward(d_hidden.mul_(b), a)
        d_w0.baddbmm_(d_a.mT, queries)
        d_w2.baddbmm_(d_b.mT, queries)
        torch.bmm(d_a, w0, out=d_q[:, here]).baddbmm_(d_b, w2)
    return d_w0, d_w1, d_w2, d_q


class _Direction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, w0: Tensor, w1: Tensor, w2: Tensor, k: Tensor, v: Tensor, rates: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        w0_t, w2_t = w0.mT, w2.mT
        d0, d1, d2 = (torch.zeros_like(w) for w in (w0, w1, w2))
        between: list[Tensor] = []
        for here in _spans(k, w0.shape[1]):
            keys, values = k[:, here], v[:, here]
            rate0, rate1, rate2 = rates[:, here].chunk(3, -1)
            a, b, e = keys @ w0_t, keys @ w2_t, values @ w1
            between += [a, b, e]
            g = _silu(a)
            d1.baddbmm_(values.mT, (g * b).mul_(rate1))
            d2.baddbmm_(g.mul_(e).mT, keys * rate2)
            d0.baddbmm_(_silu_backward(e * b, a).mT, keys * rate0)
        ctx.save_for_backward(w0, w1, w2, k, v, rates, *between)
        return d0, d1, d2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        w0, w1, w2, k, v, rates, *between = ctx.saved_tensors
        d_weights = FastWeights(*(torch.zeros_like(w) for w in (w0, w1, w2)))
        d_k, d_v, d_rates = (torch.empty_like(x) for x in (k, v, rates))
        weights, d_found = FastWeights(w0, w1, w2), FastWeights(*grads)
        with torch.autocast(k.device.type, enabled=False):
            for i, here in enumerate(_spans(k, w0.shape[1])):
                tokens = (k[:, here], v[:, here], rates[:, here])
                d_k[:, here], d_v[:, here], d_rates[:, here] = _direction_backward(
                    weights, tokens, between[3 * i : 3 * i + 3], d_found, d_weights
                )
        return *d_weights, d_k, d_v, d_rates


def _direction_backward(
    weights: FastWeights,
    tokens: tuple[Tensor, Tensor, Tensor],
    between: list[Tensor],
    d_found: FastWeights,
    d_weights: FastWeights,
) -> tuple[Tensor, Tensor, Tensor]:
    """One block: adds to ``d_weights``, returns the gradients of keys, values and rates."""
    k, v, rates = tokens
    a, b, e = between
    rate0, rate1, rate2 = rates.chunk(3, -1)
    s = a.sigmoid()
    g = a * s
    bend = (1 - s).mul_(s).mul_((a + 2).sub_(g, alpha=2))  # the slope's slope
    slope = s.addcmul_(g, 1 - s)  # of silu
    eb, hidden = e * b, g * b

    d_scaled = v @ d_found.w1
    d_rate1 = _to_rate(d_scaled, hidden, rate1)
    d_hidden = d_scaled.mul_(rate1)
    d_v = hidden.mul_(rate1) @ d_found.w1.mT

    d_k = (g * e) @ d_found.w2
    d_rate2 = _to_rate(d_k, k, rate2)
    d_k.mul_(rate2)
    d_m2 = (k * rate2) @ d_found.w2.mT

    d_scaled = (slope * eb) @ d_found.w0
    d_rate0 = _to_rate(d_scaled, k, rate0)
    d_k += d_scaled.mul_(rate0)
    d_m0 = (k * rate0) @ d_found.w0.mT

    d_a = (d_hidden * b).addcmul_(d_m2, e).mul_(slope).addcmul_(d_m0, eb.mul_(bend))
    d_m0 *= slope
    d_e = d_m2.mul_(g).addcmul_(d_m0, b)
    d_b = d_hidden.mul_(g).addcmul_(d_m0, e)

    d_k.baddbmm_(d_a, weights.w0).baddbmm_(d_b, weights.w2)
    d_v.baddbmm_(d_e, weights.w1.mT)
    d_weights.w0.baddbmm_(d_a.mT, k)
    d_weights.w1.baddbmm_(v.mT, d_e)
    d_weights.w2.baddbmm_(d_b.mT, k)
    return d_k, d_v, torch.cat([d_rate0, d_rate1, d_rate2], -1)


def _to_rate(gradient: Tensor, what: Tensor, rate: Tensor) -> Tensor:
    """The gradient of ``rate`` in ``rate * what``; one rate collects that of all channels."""
    if rate.shape[-1] == 1:
        return torch.linalg.vecdot(gradient, what)[..., None]
    return gradient * what
