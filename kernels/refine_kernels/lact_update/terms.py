"""What lies between the matrix products of a chunk: element by element, rows ``[n, h]``.

The names are those of this folder's README. With one rate for a token and matrix, ``rates`` are
``[n, 3]``. With one for each channel they are ``[n, h]``, of ``w1`` alone: those of the other two
belong to the keys (``Written`` in ``directions.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_silu = torch.nn.functional.silu
_silu_backward = torch.ops.aten.silu_backward
_sigmoid_backward = torch.ops.aten.sigmoid_backward


def hidden(a: Tensor, b: Tensor) -> Tensor:
    """``silu(a) * b``."""
    return _silu(a).mul_(b)


def hidden_backward(a: Tensor, b: Tensor, d_hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``silu(a) * b`` once more, and the gradients of ``a`` and ``b``."""
    g = _silu(a)
    again = g * b
    return again, _silu_backward(d_hidden * b, a), g.mul_(d_hidden)


def written(
    a: Tensor, b: Tensor, e: Tensor, rates: Tensor, per_channel: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``m0``, ``m1`` and ``m2``, times their rates."""
    g = _silu(a)
    m0, m1, m2 = _silu_backward(e * b, a), g * b, g.mul_(e)
    if per_channel:
        return m0, m1.mul_(rates), m2
    rate0, rate1, rate2 = rates.split(1, -1)
    return m0.mul_(rate0), m1.mul_(rate1), m2.mul_(rate2)


class WrittenBackward(NamedTuple):
    """What :func:`written_backward` finds, ``[n, h]``."""

    m0: Tensor  # times their rates
    m1: Tensor
    m2: Tensor
    d_a: Tensor
    d_b: Tensor
    d_e: Tensor
    d_rates: Tensor  # in the shape of the rates


def written_backward(
    a: Tensor,
    b: Tensor,
    e: Tensor,
    x0: Tensor,
    x1: Tensor,
    x2: Tensor,
    rates: Tensor,
    per_channel: bool,
) -> WrittenBackward:
    """The gradients of :func:`written`, given ``x``, those of what it returns."""
    s = a.sigmoid()
    g = a * s
    slope = _sigmoid_backward(a, s).add_(s)  # of silu
    eb = e * b
    m0, m1, m2 = eb * slope, g * b, g * e
    bent = _sigmoid_backward((a + 2).sub_(g, alpha=2).mul_(eb), s)  # by the slope's slope
    if per_channel:
        d_rates = x1 * m1
        x1 = x1 * rates
        m1 *= rates
    else:
        rate0, rate1, rate2 = rates.split(1, -1)
        d_rates = torch.cat(
            [(x * m).sum(-1, keepdim=True) for x, m in ((x0, m0), (x1, m1), (x2, m2))], -1
        )
        x0, x1, x2 = x0 * rate0, x1 * rate1, x2 * rate2
        m0 *= rate0
        m1 *= rate1
        m2 *= rate2
    d_a = (x1 * b).addcmul_(x2, e).mul_(slope).addcmul_(x0, bent)
    bent = x0 * slope
    d_b = (x1 * g).addcmul_(bent, e)
    d_e = (x2 * g).addcmul_(bent, b)
    return WrittenBackward(m0, m1, m2, d_a, d_b, d_e, d_rates)


class Terms(NamedTuple):
    """The functions above, or the same ones compiled."""

    hidden: Callable[..., Tensor]
    hidden_backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    written: Callable[..., tuple[Tensor, Tensor, Tensor]]
    written_backward: Callable[..., WrittenBackward]


EAGER = Terms(hidden, hidden_backward, written, written_backward)
