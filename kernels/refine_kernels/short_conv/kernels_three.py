"""Triton kernels of three convolutions over the same tokens: those of q, k and v.

What each program does is in ``kernels.py``. A program belongs to one of the three, by the number of
its block of channels: first come those of the first. ``EQUAL``: they have as many channels, which
are a constant then; else ``ALIGN`` divides all three.
"""

from __future__ import annotations

import triton
import triton.language as tl

from refine_kernels.short_conv.kernels import backward_of, forward_of


@triton.jit(do_not_specialize=["T", "N"])
def convolve_three(
    x0, x1, x2, tail0, tail1, tail2, weight0, weight1, weight2, y0, y1, y2, T, N,
    D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EQUAL: tl.constexpr,
    ALIGN: tl.constexpr, W: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, TAIL: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    """``y [B, T, D]`` of each; ``N`` programs for the tokens of a row."""
    pid, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, token = pid // N, (pid % N) * BT + tl.arange(0, BT)
    FIRST: tl.constexpr = (D0 + BD - 1) // BD
    SECOND: tl.constexpr = FIRST + (D1 + BD - 1) // BD
    x, tail, weight, y, begin, channels = x0, tail0, weight0, y0, 0, D0 + 0 * block
    if block >= SECOND:
        x, weight, y, begin, channels = x2, weight2, y2, SECOND, D2 + 0 * block
        if TAIL:
            tail = tail2
    elif block >= FIRST:
        x, weight, y, begin, channels = x1, weight1, y1, FIRST, D1 + 0 * block
        if TAIL:
            tail = tail1
    if EQUAL:
        forward_of(
            x, tail, weight, weight, y, b, token, block - begin, T, D0, W, BD, TAIL, False, SILU
        )
    else:
        D = tl.multiple_of(channels, ALIGN)
        forward_of(
            x, tail, weight, weight, y, b, token, block - begin, T, D, W, BD, TAIL, False, SILU
        )


@triton.jit(do_not_specialize=["T", "N"])
def convolve_three_back(
    x0, x1, x2, tail0, tail1, tail2, weight0, weight1, weight2, d_y0, d_y1, d_y2, d_x0, d_x1, d_x2,
    d_tail0, d_tail1, d_tail2, partial, T, N,
    D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EQUAL: tl.constexpr,
    ALIGN: tl.constexpr, W: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, TAIL: tl.constexpr,
    SILU: tl.constexpr, WEIGHT: tl.constexpr,
):  # fmt: skip
    """Gradients of the inputs of each; of the taps of all side by side in a row of ``partial``."""
    pid, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, token = pid // N, (pid % N) * BT + tl.arange(0, BT) - (W - 1)
    FIRST: tl.constexpr = (D0 + BD - 1) // BD
    SECOND: tl.constexpr = FIRST + (D1 + BD - 1) // BD
    x, tail, weight, begin, channels = x0, tail0, weight0, 0, D0 + 0 * block
    d_y, d_x, d_tail, before = d_y0, d_x0, d_tail0, 0
    if block >= SECOND:
        x, weight, begin, channels = x2, weight2, SECOND, D2 + 0 * block
        d_y, d_x, before = d_y2, d_x2, D0 + D1
        if TAIL:
            tail, d_tail = tail2, d_tail2
    elif block >= FIRST:
        x, weight, begin, channels = x1, weight1, FIRST, D1 + 0 * block
        d_y, d_x, before = d_y1, d_x1, D0
        if TAIL:
            tail, d_tail = tail1, d_tail1
    sums = partial
    if WEIGHT:
        sums = partial + pid * (D0 + D1 + D2) * W + before * W
    if EQUAL:
        backward_of(
            x, tail, weight, weight, d_y, d_x, d_tail, sums, b, token, block - begin, T, D0, W, BT,
            BD, TAIL, False, SILU, WEIGHT,
        )  # fmt: skip
    else:
        D = tl.multiple_of(channels, ALIGN)
        backward_of(
            x, tail, weight, weight, d_y, d_x, d_tail, sums, b, token, block - begin, T, D, W, BT,
            BD, TAIL, False, SILU, WEIGHT,
        )  # fmt: skip
