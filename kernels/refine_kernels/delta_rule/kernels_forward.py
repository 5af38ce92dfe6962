"""Triton kernels of the delta rule's forward pass. Names and equations are those of the README.

A program works on one chunk of one head of one row, ``pid = (row * H + head) * N + chunk``; the
recurrence's programs on one head of one row and some columns of the state. Rows of q and k are
multiplied by their norms, and by the decay, after the products: what is loaded is multiplied as it
is. ``op`` is the type of q. Buffers beside the inputs:

    inverse [B*H, N, C, C] op         norm_k, norm_q, decay [B*H, N*C] float32
    w [B, T, H, K] op                 from_values, u [B, T, H, V] op
    states [B*H, N, K, V] op          entering each chunk
    slot [B, N] int32                 where a chunk's state is wanted, or -1
    at_slot [slots, H, K, V] float32, u_at_slot [slots, H, C, V] float32
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def token_rows(bh, n, i, T, H: tl.constexpr, C: tl.constexpr):
    """Rows of ``[B, T, H, ...]`` of tokens i of chunk n, and which of them there are."""
    token = n * C + i
    return ((bh // H) * T + token) * H + bh % H, token < T


@triton.jit
def load_rows(pointer, row, ok, column, WIDTH: tl.constexpr):
    """Rows of a matrix with ``WIDTH`` columns, zeros outside of it."""
    place = row[:, None] * WIDTH + column[None, :]
    return tl.load(pointer + place, mask=ok[:, None] & (column < WIDTH)[None, :], other=0.0)


@triton.jit
def store_rows(pointer, row, ok, column, WIDTH: tl.constexpr, value):
    """The inverse of ``load_rows``."""
    place = row[:, None] * WIDTH + column[None, :]
    mask = ok[:, None] & (column < WIDTH)[None, :]
    tl.store(pointer + place, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def pair_decay(decay, i):
    """``e^{G_i - G_j}`` for ``j <= i``; above the diagonal 1, which is masked by the caller."""
    lower = i[:, None] >= i[None, :]
    return tl.exp(tl.where(lower, decay[:, None] - decay[None, :], 0.0))


@triton.jit
def diagonal_blocks(a, C: tl.constexpr, SIZE: tl.constexpr):
    """``[C // SIZE, SIZE, SIZE]`` along the diagonal of ``a [C, C]``."""
    BLOCKS: tl.constexpr = C // SIZE
    block = tl.arange(0, BLOCKS)
    same = block[:, None, None, None] == block[None, None, :, None]
    return tl.sum(tl.where(same, tl.reshape(a, [BLOCKS, SIZE, BLOCKS, SIZE]), 0.0), 2)


@triton.jit
def merge_blocks(found, a, C: tl.constexpr, SIZE: tl.constexpr):
    """From the inverses of diagonal blocks of ``SIZE`` to those of twice the size."""
    PAIRS: tl.constexpr = C // (2 * SIZE)
    two = tl.arange(0, 2)
    row, column = two[None, :, None, None, None], two[None, None, None, :, None]
    second = two[None, :, None, None]
    whole = tl.reshape(found, [PAIRS, 2, SIZE, SIZE])
    upper = tl.sum(tl.where(second == 0, whole, 0.0), 1)
    lower = tl.sum(tl.where(second == 1, whole, 0.0), 1)
    a = tl.reshape(diagonal_blocks(a, C, 2 * SIZE), [PAIRS, 2, SIZE, 2, SIZE])
    corner = tl.sum(tl.sum(tl.where(row > column, a, 0.0), 3), 1)
    corner = tl.dot(
        tl.dot(lower, corner, input_precision="tf32x3"), upper, input_precision="tf32x3"
    )
    diagonal = tl.where(row == 0, upper[:, None, :, None, :], lower[:, None, :, None, :])
    below = tl.where(row > column, -corner[:, None, :, None, :], 0.0)
    return tl.reshape(tl.where(row == column, diagonal, below), [PAIRS, 2 * SIZE, 2 * SIZE])


@triton.jit
def invert_unit_lower(a, C: tl.constexpr):
    """``(I + a)^-1`` of a strictly lower triangular ``a [C, C]``, C of 16, 32 or 64.

    Rows one after the other inside blocks of 16, all blocks at once; then two blocks into one. A
    power series would be shorter, but loses all digits where keys are alike.
    """
    r = tl.arange(0, 16)
    inside = diagonal_blocks(a, C, 16)
    found = tl.where(r[None, :, None] == r[None, None, :], 1.0, inside * 0.0)
    for step in range(1, 16):
        here = (r == step)[None, :, None]
        weights = tl.sum(tl.where(here, inside, 0.0), 1)
        sums = tl.sum(weights[:, :, None] * found, 1)
        found = tl.where(here, found - sums[:, None, :], found)
    if C >= 32:
        found = merge_blocks(found, a, C, 16)
    if C >= 64:
        found = merge_blocks(found, a, C, 32)
    return tl.reshape(found, [C, C])


@triton.jit(do_not_specialize=["T", "N"])
def prepare(
    k, v, beta, log_decay, inverse, norm_k, decay, w, from_values, T, N,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, NORMALIZE: tl.constexpr, DECAY: tl.constexpr, SOLVE: tl.constexpr,
):  # fmt: skip
    """``A^-1`` (``SOLVE``; else it is read), ``A^-1 diag(beta) k_in``, ``A^-1 diag(beta) V``."""
    pid = tl.program_id(0).to(tl.int64)
    n, bh = pid % N, pid // N
    i, column = tl.arange(0, C), tl.arange(0, BK)
    row, ok = token_rows(bh, n, i, T, H, C)
    line = pid * C + i
    square = pid * C * C + i[:, None] * C + i[None, :]
    op = k.dtype.element_ty
    keys = load_rows(k, row, ok, column, K)
    strength = tl.load(beta + row, mask=ok, other=0.0).to(tl.float32)
    weight = strength
    if SOLVE:
        a = tl.dot(keys, tl.trans(keys), input_precision="ieee") * strength[:, None]
        if NORMALIZE:
            wide = keys.to(tl.float32)
            norm = tl.rsqrt(tl.sum(wide * wide, 1) + 1e-6)
            tl.store(norm_k + line, norm)
            a = a * norm[:, None] * norm[None, :]
            weight = weight * norm
        if DECAY:
            total = tl.cumsum(tl.load(log_decay + row, mask=ok, other=0.0).to(tl.float32), 0)
            tl.store(decay + line, total)
            a = a * pair_decay(total, i)
            weight = weight * tl.exp(total)
        a = tl.where(i[:, None] > i[None, :], a, 0.0)
        x = invert_unit_lower(a, C).to(op)
        tl.store(inverse + square, x)
    else:
        x = tl.load(inverse + square)
        if NORMALIZE:
            weight = weight * tl.load(norm_k + line)
        if DECAY:
            weight = weight * tl.exp(tl.load(decay + line))
    wide_x = x.to(tl.float32)
    from_keys = (wide_x * weight[None, :]).to(op)
    store_rows(w, row, ok, column, K, tl.dot(from_keys, keys, input_precision="ieee"))
    from_rows = (wide_x * strength[None, :]).to(op)
    for first in range(0, V, BV):
        part = first + tl.arange(0, BV)
        values = load_rows(v, row, ok, part, V)
        made = tl.dot(from_rows, values, input_precision="ieee")
        store_rows(from_values, row, ok, part, V, made)


@triton.jit(do_not_specialize=["T", "N"])
def recur(
    k, w, from_values, norm_k, decay, initial, slot, u, states, final, at_slot, u_at_slot, T, N,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, NORMALIZE: tl.constexpr, DECAY: tl.constexpr, EMIT: tl.constexpr,
):  # fmt: skip
    """``u`` and the states, chunk after chunk. ``EMIT``: 1 states at slots, 2 also ``u`` there."""
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // H, bh % H
    i, column, part = tl.arange(0, C), tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    inside = (column < K)[:, None] & (part < V)[None, :]
    tile = column[:, None] * V + part[None, :]
    narrow = i[:, None] * V + part[None, :]
    op = k.dtype.element_ty
    state = tl.load(initial + bh * K * V + tile, mask=inside, other=0.0)
    for n in range(0, N):
        row, ok = token_rows(bh, n, i, T, H, C)
        chunk = bh * N + n
        tl.store(states + chunk * K * V + tile, state.to(op), mask=inside)
        keys = load_rows(k, row, ok, column, K)
        reads = load_rows(w, row, ok, column, K)
        new = load_rows(from_values, row, ok, part, V).to(tl.float32)
        new -= tl.dot(reads, state.to(op), input_precision="ieee")
        store_rows(u, row, ok, part, V, new)
        if EMIT >= 1:
            where = tl.load(slot + b * N + n).to(tl.int64)
            place = where * H + h
            wanted = (where + 0 * column >= 0)[:, None]  # the interpreter masks with no scalar
            tl.store(at_slot + place * K * V + tile, state, mask=wanted & inside)
            if EMIT == 2:
                rows = (where + 0 * i >= 0)[:, None] & (part < V)[None, :]
                tl.store(u_at_slot + place * C * V + narrow, new, mask=rows)
        if NORMALIZE:
            new = new * tl.load(norm_k + chunk * C + i)[:, None]
        if DECAY:
            total = tl.load(decay + chunk * C + i)
            last = tl.load(decay + chunk * C + C - 1)
            new = new * tl.exp(last - total)[:, None]
            state = state * tl.exp(last)
        state += tl.dot(tl.trans(keys), new.to(op), input_precision="ieee")
    tl.store(final + bh * K * V + tile, state, mask=inside)


@triton.jit(do_not_specialize=["T", "N"])
def outputs(
    q, k, norm_k, norm_q, decay, states, u, output, scale, T, N,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, NORMALIZE: tl.constexpr, DECAY: tl.constexpr,
):  # fmt: skip
    """``O = q_in S + within u``, and the norms of q (the scale in them)."""
    pid = tl.program_id(0).to(tl.int64)
    n, bh = pid % N, pid // N
    i, column, part = tl.arange(0, C), tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    row, ok = token_rows(bh, n, i, T, H, C)
    inside = (column < K)[:, None] & (part < V)[None, :]
    op = q.dtype.element_ty
    queries = load_rows(q, row, ok, column, K)
    keys = load_rows(k, row, ok, column, K)
    entering = pid * K * V + column[:, None] * V + part[None, :]
    state = tl.load(states + entering, mask=inside, other=0.0)
    within = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    found = tl.dot(queries, state, input_precision="ieee")
    if NORMALIZE:
        wide = queries.to(tl.float32)
        norm = scale * tl.rsqrt(tl.sum(wide * wide, 1) + 1e-6)
        tl.store(norm_q + pid * C + i, norm, mask=tl.program_id(1) + 0 * i == 0)
        within = within * norm[:, None] * tl.load(norm_k + pid * C + i)[None, :]
        found = found * norm[:, None]
    else:
        within, found = within * scale, found * scale
    if DECAY:
        total = tl.load(decay + pid * C + i)
        within = within * pair_decay(total, i)
        found = found * tl.exp(total)[:, None]
    within = tl.where(i[:, None] >= i[None, :], within, 0.0).to(op)
    found += tl.dot(within, load_rows(u, row, ok, part, V), input_precision="ieee")
    store_rows(output, row, ok, part, V, found)
