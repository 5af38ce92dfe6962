"""Triton kernels of RMSNorm with a gate: a program takes some whole rows.

``GATE``: 0 none, 1 one for each row ``[M]``, 2 one for each element ``[M, D]``. Sums are float32,
and so is ``scale [M]``, the norms' factors ``1 / sqrt(mean(x^2) + eps)``.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_gate(gate, row, ok, place, inside, GATE: tl.constexpr):
    """The gates of some rows ``[ROWS, BD]``, or ``[ROWS, 1]``."""
    if GATE == 1:
        found = tl.load(gate + row, mask=ok, other=0.0).to(tl.float32)[:, None]
    else:
        found = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    return found


@triton.jit(do_not_specialize=["M"])
def normalize(
    x, gate, weight, y, scale, M, eps, offset,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, GATE: tl.constexpr,
    SIGMOID: tl.constexpr,
):  # fmt: skip
    """``y`` and ``scale``."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BD)
    ok = row < M
    inside = ok[:, None] & (column < D)[None, :]
    place = row[:, None] * D + column[None, :]
    wide = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, 1) / D + eps)
    tl.store(scale + row, factor, mask=ok)
    w = tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32) + offset
    found = wide * factor[:, None] * w[None, :]
    if GATE > 0:
        g = load_gate(gate, row, ok, place, inside, GATE)
        found = found * tl.sigmoid(g)
        if not SIGMOID:
            found = found * g
    tl.store(y + place, found.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M", "STEPS"])
def normalize_back(
    x, gate, weight, scale, d_y, d_x, d_gate, partial, M, STEPS, offset,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, GATE: tl.constexpr,
    SIGMOID: tl.constexpr, WEIGHT: tl.constexpr,
):  # fmt: skip
    """Gradients of x and gate; ``WEIGHT``: each program's share of that of the weight."""
    pid = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BD)
    w = tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32) + offset
    total = tl.zeros([BD], tl.float32)
    for step in range(0, STEPS):
        row = (pid * STEPS + step) * ROWS + tl.arange(0, ROWS)
        ok = row < M
        inside = ok[:, None] & (column < D)[None, :]
        place = row[:, None] * D + column[None, :]
        factor = tl.load(scale + row, mask=ok, other=0.0)
        unit = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * factor[:, None]
        given = tl.load(d_y + place, mask=inside, other=0.0).to(tl.float32)
        if GATE > 0:
            g = load_gate(gate, row, ok, place, inside, GATE)
            s = tl.sigmoid(g)
            slope = s * (1 - s)
            opened = s
            if not SIGMOID:
                slope = s + g * slope
                opened = g * s
            d_opened = given * unit * w[None, :] * slope
            if GATE == 1:
                d_g = tl.sum(d_opened, 1)
                tl.store(d_gate + row, d_g.to(d_gate.dtype.element_ty), mask=ok)
            else:
                tl.store(d_gate + place, d_opened.to(d_gate.dtype.element_ty), mask=inside)
            given = given * opened
        if WEIGHT:
            total += tl.sum(given * unit, 0)
        given = given * w[None, :]
        along = tl.sum(given * unit, 1) / D
        found = (given - unit * along[:, None]) * factor[:, None]
        tl.store(d_x + place, found.to(d_x.dtype.element_ty), mask=inside)
    if WEIGHT:
        tl.store(partial + pid * D + column, total, mask=column < D)
