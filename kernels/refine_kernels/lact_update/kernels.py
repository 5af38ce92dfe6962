"""Triton kernels of what lies between LaCT's products; names are those of the README.

A program takes some rows of width ``H``. Rows of ``ab``, ``m02``, ``x02`` and ``two`` hold two such
widths side by side, those of ``four`` four. ``RATES``: ``rates [n, 3]``; else ``[n, H]``, of ``w1``
alone.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_part(
    pointer, row, column, inside, H: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr
):  # fmt: skip
    """The part of that number of some rows, float32."""
    place = row[:, None] * (H * PARTS) + H * PART + column[None, :]
    return tl.load(pointer + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_part(
    pointer, row, column, inside, value, H: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr
):  # fmt: skip
    """The inverse of ``load_part``."""
    place = row[:, None] * (H * PARTS) + H * PART + column[None, :]
    tl.store(pointer + place, value.to(pointer.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["N"])
def fast_hidden(ab, y, N, H: tl.constexpr, BH: tl.constexpr, ROWS: tl.constexpr):
    """``silu(a) b``."""
    row, column = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BH)
    inside = (row < N)[:, None] & (column < H)[None, :]
    a = load_part(ab, row, column, inside, H, 2, 0)
    b = load_part(ab, row, column, inside, H, 2, 1)
    store_part(y, row, column, inside, a * tl.sigmoid(a) * b, H, 1, 0)


@triton.jit(do_not_specialize=["N"])
def fast_hidden_back(ab, d_y, d_ab, y, N, H: tl.constexpr, BH: tl.constexpr, ROWS: tl.constexpr):
    """The gradients of a and b, and ``silu(a) b`` once more."""
    row, column = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BH)
    inside = (row < N)[:, None] & (column < H)[None, :]
    a = load_part(ab, row, column, inside, H, 2, 0)
    b = load_part(ab, row, column, inside, H, 2, 1)
    given = load_part(d_y, row, column, inside, H, 1, 0)
    s = tl.sigmoid(a)
    g = a * s
    store_part(y, row, column, inside, g * b, H, 1, 0)
    store_part(d_ab, row, column, inside, given * b * (s + g * (1 - s)), H, 2, 0)
    store_part(d_ab, row, column, inside, given * g, H, 2, 1)


@triton.jit(do_not_specialize=["N"])
def fast_written(
    ab, e, rates, m02, m1, N,
    H: tl.constexpr, BH: tl.constexpr, ROWS: tl.constexpr, RATES: tl.constexpr,
):  # fmt: skip
    """``m0 | m2`` and ``m1``, times their rates."""
    row, column = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BH)
    ok = row < N
    inside = ok[:, None] & (column < H)[None, :]
    a = load_part(ab, row, column, inside, H, 2, 0)
    b = load_part(ab, row, column, inside, H, 2, 1)
    values = load_part(e, row, column, inside, H, 1, 0)
    s = tl.sigmoid(a)
    g = a * s
    zero, one, two = values * b * (s + g * (1 - s)), g * b, values * g
    if RATES:
        zero = zero * tl.load(rates + row * 3, mask=ok, other=0.0).to(tl.float32)[:, None]
        one = one * tl.load(rates + row * 3 + 1, mask=ok, other=0.0).to(tl.float32)[:, None]
        two = two * tl.load(rates + row * 3 + 2, mask=ok, other=0.0).to(tl.float32)[:, None]
    else:
        one = one * load_part(rates, row, column, inside, H, 1, 0)
    store_part(m02, row, column, inside, zero, H, 2, 0)
    store_part(m02, row, column, inside, two, H, 2, 1)
    store_part(m1, row, column, inside, one, H, 1, 0)


@triton.jit(do_not_specialize=["N"])
def fast_written_back(
    ab, e, x02, x1, rates, four, two, d_rates, N,
    H: tl.constexpr, BH: tl.constexpr, ROWS: tl.constexpr, RATES: tl.constexpr,
):  # fmt: skip
    """``d_a | d_b | m0 | m2``, ``m1 | d_e`` and the rates' gradients."""
    row, column = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BH)
    ok = row < N
    inside = ok[:, None] & (column < H)[None, :]
    a = load_part(ab, row, column, inside, H, 2, 0)
    b = load_part(ab, row, column, inside, H, 2, 1)
    values = load_part(e, row, column, inside, H, 1, 0)
    h0 = load_part(x02, row, column, inside, H, 2, 0)
    h1 = load_part(x1, row, column, inside, H, 1, 0)
    h2 = load_part(x02, row, column, inside, H, 2, 1)
    s = tl.sigmoid(a)
    g = a * s
    slope = s + g * (1 - s)
    m0, m1, m2 = values * b * slope, g * b, values * g
    if RATES:
        place = row * 3
        rate0 = tl.load(rates + place, mask=ok, other=0.0).to(tl.float32)[:, None]
        rate1 = tl.load(rates + place + 1, mask=ok, other=0.0).to(tl.float32)[:, None]
        rate2 = tl.load(rates + place + 2, mask=ok, other=0.0).to(tl.float32)[:, None]
        tl.store(d_rates + place, tl.sum(h0 * m0, 1).to(d_rates.dtype.element_ty), mask=ok)
        tl.store(d_rates + place + 1, tl.sum(h1 * m1, 1).to(d_rates.dtype.element_ty), mask=ok)
        tl.store(d_rates + place + 2, tl.sum(h2 * m2, 1).to(d_rates.dtype.element_ty), mask=ok)
        h0, h1, h2 = h0 * rate0, h1 * rate1, h2 * rate2
        m0, m1, m2 = m0 * rate0, m1 * rate1, m2 * rate2
    else:
        rate1 = load_part(rates, row, column, inside, H, 1, 0)
        store_part(d_rates, row, column, inside, h1 * m1, H, 1, 0)
        h1, m1 = h1 * rate1, m1 * rate1
    store_part(four, row, column, inside, m0, H, 4, 2)
    store_part(four, row, column, inside, m2, H, 4, 3)
    store_part(two, row, column, inside, m1, H, 2, 0)
    bent = s * (1 - s) * (2 + a - 2 * g)  # the slope's slope
    d_a = (h1 * b + h2 * values) * slope + h0 * values * b * bent
    store_part(four, row, column, inside, d_a, H, 4, 0)
    store_part(four, row, column, inside, h1 * g + h0 * values * slope, H, 4, 1)
    store_part(two, row, column, inside, h2 * g + h0 * b * slope, H, 2, 1)
