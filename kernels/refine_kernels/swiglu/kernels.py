"""Triton kernels of ``silu(gate) * up``, over ``COUNT`` elements that lie side by side."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def multiply(gate, up, y, COUNT, BLOCK: tl.constexpr):
    """``y``."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < COUNT
    g = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + place, (g * tl.sigmoid(g) * u).to(y.dtype.element_ty), mask=inside)


@triton.jit
def multiply_back(gate, up, d_y, d_gate, d_up, again, COUNT, BLOCK: tl.constexpr):
    """The gradients; and ``y`` once more, if there is a place for it."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < COUNT
    g = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    given = tl.load(d_y + place, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    opened = g * s
    d_g = given * u * (s + opened * (1 - s))
    tl.store(d_gate + place, d_g.to(d_gate.dtype.element_ty), mask=inside)
    tl.store(d_up + place, (given * opened).to(d_up.dtype.element_ty), mask=inside)
    if again is not None:
        tl.store(again + place, (opened * u).to(again.dtype.element_ty), mask=inside)
