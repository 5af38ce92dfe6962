"""Triton kernels of the short convolution: a program takes some tokens and channels of one row.

``tail [B, W - 1, D]`` are the inputs before a row's first token. Shifted loads of the same tokens
come from the cache; sums are float32. What is called by a kernel takes ``D`` as a constant or not.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_inputs(x, tail, b, token, channel, T, D, W: tl.constexpr, TAIL: tl.constexpr):
    """Inputs of tokens that may lie before the first one (in the tail) or outside of the row."""
    known = (channel < D)[None, :]
    here = ((token >= 0) & (token < T))[:, None] & known
    place = (b * T + token)[:, None] * D + channel[None, :]
    found = tl.load(x + place, mask=here, other=0.0).to(tl.float32)
    if TAIL:
        early = ((token < 0) & (token >= 1 - W))[:, None] & known
        place = (b * (W - 1) + token + W - 1)[:, None] * D + channel[None, :]
        found += tl.load(tail + place, mask=early, other=0.0).to(tl.float32)
    return found


@triton.jit
def load_tap(weight, channel, j, D, W: tl.constexpr):
    """The tap ``j`` of some channels."""
    return tl.load(weight + channel * W + j, mask=channel < D, other=0.0).to(tl.float32)


@triton.jit
def before_activation(
    x, tail, weight, bias, b, token, channel, T, D, W: tl.constexpr,
    TAIL: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """What SiLU is applied to, at some tokens."""
    first = load_inputs(x, tail, b, token - (W - 1), channel, T, D, W, TAIL)
    found = first * load_tap(weight, channel, 0, D, W)[None, :]
    for j in tl.static_range(1, W):
        inputs = load_inputs(x, tail, b, token + (j - (W - 1)), channel, T, D, W, TAIL)
        found += inputs * load_tap(weight, channel, j, D, W)[None, :]
    if BIAS:
        found += tl.load(bias + channel, mask=channel < D, other=0.0).to(tl.float32)[None, :]
    return found


@triton.jit
def forward_of(
    x, tail, weight, bias, y, b, token, block, T, D, W: tl.constexpr,
    BD, TAIL: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """``y`` at some tokens of row ``b``, and the channels of a block."""
    channel = block * BD + tl.arange(0, BD)
    found = before_activation(x, tail, weight, bias, b, token, channel, T, D, W, TAIL, BIAS)
    if SILU:
        found = found * tl.sigmoid(found)
    inside = (token < T)[:, None] & (channel < D)[None, :]
    place = (b * T + token)[:, None] * D + channel[None, :]
    tl.store(y + place, found.to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_of(
    x, tail, weight, bias, d_y, d_x, d_tail, sums, b, token, block, T, D,
    W: tl.constexpr, BT: tl.constexpr, BD, TAIL: tl.constexpr, BIAS: tl.constexpr,
    SILU: tl.constexpr, WEIGHT: tl.constexpr,
):  # fmt: skip
    """Gradients of inputs at some tokens, and of the block's channels.

    ``WEIGHT``: the share of those of the taps ``[D, W]`` and the bias ``[D]`` too, at ``sums``.
    """
    channel = block * BD + tl.arange(0, BD)
    known = channel < D
    found = tl.zeros([BT, BD], tl.float32)
    for i in tl.static_range(W):  # an input is read by W tokens, by the last tap first
        reader = token + i
        ok = ((reader >= 0) & (reader < T))[:, None] & known[None, :]
        place = (b * T + reader)[:, None] * D + channel[None, :]
        given = tl.load(d_y + place, mask=ok, other=0.0).to(tl.float32)
        if SILU:
            a = before_activation(x, tail, weight, bias, b, reader, channel, T, D, W, TAIL, BIAS)
            s = tl.sigmoid(a)
            given = given * (s + a * s * (1 - s))
        found += given * load_tap(weight, channel, W - 1 - i, D, W)[None, :]
        if WEIGHT and i == 0:
            for j in tl.static_range(W):
                inputs = load_inputs(x, tail, b, token + (j - (W - 1)), channel, T, D, W, TAIL)
                tl.store(sums + channel * W + j, tl.sum(given * inputs, 0), mask=known)
            if BIAS:
                tl.store(sums + D * W + channel, tl.sum(given, 0), mask=known)
    inside = ((token >= 0) & (token < T))[:, None] & known[None, :]
    place = (b * T + token)[:, None] * D + channel[None, :]
    tl.store(d_x + place, found.to(d_x.dtype.element_ty), mask=inside)
    if TAIL:
        early = (token < 0)[:, None] & known[None, :]
        place = (b * (W - 1) + token + W - 1)[:, None] * D + channel[None, :]
        tl.store(d_tail + place, found.to(d_tail.dtype.element_ty), mask=early)


@triton.jit(do_not_specialize=["T", "N"])
def convolve(
    x, tail, weight, bias, y, T, N,
    D: tl.constexpr, W: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, TAIL: tl.constexpr,
    BIAS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """``y [B, T, D]``; ``N`` programs for the tokens of a row."""
    pid = tl.program_id(0).to(tl.int64)
    b, token = pid // N, (pid % N) * BT + tl.arange(0, BT)
    forward_of(x, tail, weight, bias, y, b, token, tl.program_id(1), T, D, W, BD, TAIL, BIAS, SILU)


@triton.jit(do_not_specialize=["T", "N"])
def convolve_back(
    x, tail, weight, bias, d_y, d_x, d_tail, partial, T, N,
    D: tl.constexpr, W: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, TAIL: tl.constexpr,
    BIAS: tl.constexpr, SILU: tl.constexpr, WEIGHT: tl.constexpr,
):  # fmt: skip
    """Gradients of the inputs, from the tail's first to the row's last.

    ``WEIGHT``: a row of ``partial`` for each program along the tokens. The program counts the
    tokens that it writes ``d_x`` of.
    """
    pid = tl.program_id(0).to(tl.int64)
    b, token = pid // N, (pid % N) * BT + tl.arange(0, BT) - (W - 1)
    backward_of(
        x, tail, weight, bias, d_y, d_x, d_tail, partial + pid * D * (W + BIAS), b, token,
        tl.program_id(1), T, D, W, BT, BD, TAIL, BIAS, SILU, WEIGHT,
    )  # fmt: skip
