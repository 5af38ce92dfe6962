"""Triton kernels of the delta rule's backward pass; buffers as in ``kernels_forward.py``.

``p = A^-T d_u`` is the gradient of ``diag(beta) (V - k_in S)``, of which ``u`` is the solution; so
the gradient of ``A`` is ``-p u^T``, and neither U nor W is needed. ``d_next [B*H, N, K, V]`` is the
gradient of the state that leaves a chunk, ``pairs [B*H, N, 2, C, C]`` those of products and
``within``, ``d_decay [B*H, N*C]`` float32 that of the running sums of the decay.
"""

from __future__ import annotations

import triton
import triton.language as tl

from refine_kernels.delta_rule.kernels_forward import (
    load_rows,
    pair_decay,
    store_rows,
    token_rows,
)


@triton.jit
def load_columns(pointer, column, part, K: tl.constexpr, V: tl.constexpr):
    """Columns ``part`` of a state ``[K, V]``, transposed: ``[V, K]``, zeros outside of it."""
    inside = (column < K)[None, :] & (part < V)[:, None]
    return tl.load(pointer + column[None, :] * V + part[:, None], mask=inside, other=0.0)


@triton.jit(do_not_specialize=["T", "N"])
def written_back(
    q, k, norm_k, norm_q, decay, d_output, slot, d_u_at_slot, d_u, scale, T, N,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, NORMALIZE: tl.constexpr, DECAY: tl.constexpr, EMIT: tl.constexpr,
):  # fmt: skip
    """What the chunk's own outputs, and its slot, give to the gradient of ``u``."""
    pid = tl.program_id(0).to(tl.int64)
    n, bh = pid % N, pid // N
    i, column, part = tl.arange(0, C), tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    row, ok = token_rows(bh, n, i, T, H, C)
    queries = load_rows(q, row, ok, column, K)
    keys = load_rows(k, row, ok, column, K)
    within = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    if NORMALIZE:
        within = within * tl.load(norm_q + pid * C + i)[:, None]
        within = within * tl.load(norm_k + pid * C + i)[None, :]
    else:
        within = within * scale
    if DECAY:
        within = within * pair_decay(tl.load(decay + pid * C + i), i)
    within = tl.where(i[:, None] >= i[None, :], within, 0.0).to(q.dtype.element_ty)
    found = tl.dot(tl.trans(within), load_rows(d_output, row, ok, part, V), input_precision="ieee")
    if EMIT == 2:
        where = tl.load(slot + (bh // H) * N + n).to(tl.int64)
        place = (where * H + bh % H) * C * V + i[:, None] * V + part[None, :]
        rows = (where + 0 * i >= 0)[:, None] & (part < V)[None, :]
        found += tl.load(d_u_at_slot + place, mask=rows, other=0.0)
    store_rows(d_u, row, ok, part, V, found)


@triton.jit(do_not_specialize=["T", "N"])
def recur_back(
    q, k, w, norm_k, norm_q, decay, d_output, d_from_output, d_final, slot, d_at_slot, d_u,
    d_next, d_initial, scale, T, N,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, NORMALIZE: tl.constexpr, DECAY: tl.constexpr, EMIT: tl.constexpr,
):  # fmt: skip
    """``d_u`` and the states' gradients, from the last chunk to the first."""
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // H, bh % H
    i, column, part = tl.arange(0, C), tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    inside = (column < K)[:, None] & (part < V)[None, :]
    tile = column[:, None] * V + part[None, :]
    op = k.dtype.element_ty
    d_state = tl.load(d_final + bh * K * V + tile, mask=inside, other=0.0)
    for back in range(0, N):
        n = N - 1 - back
        row, ok = token_rows(bh, n, i, T, H, C)
        chunk = bh * N + n
        tl.store(d_next + chunk * K * V + tile, d_state.to(op), mask=inside)
        keys = load_rows(k, row, ok, column, K)
        reads = load_rows(w, row, ok, column, K)
        queries = load_rows(q, row, ok, column, K)
        asked = load_rows(d_output, row, ok, part, V).to(tl.float32)
        new = tl.dot(keys, d_state.to(op), input_precision="ieee")
        if NORMALIZE:
            new = new * tl.load(norm_k + chunk * C + i)[:, None]
            asked = asked * tl.load(norm_q + chunk * C + i)[:, None]
        else:
            asked = asked * scale
        if DECAY:
            total = tl.load(decay + chunk * C + i)
            last = tl.load(decay + chunk * C + C - 1)
            new = new * tl.exp(last - total)[:, None]
            asked = asked * tl.exp(total)[:, None]
            d_state = d_state * tl.exp(last)
        new += load_rows(d_from_output, row, ok, part, V).to(tl.float32)
        store_rows(d_u, row, ok, part, V, new)
        d_state += tl.dot(tl.trans(queries), asked.to(op), input_precision="ieee")
        # Not a difference: Triton 3.4 does not compile one of running sums of products for sm_100.
        d_state += tl.dot(tl.trans(reads), (-new).to(op), input_precision="ieee")
        if EMIT >= 1:
            where = tl.load(slot + b * N + n).to(tl.int64)
            place = (where * H + h) * K * V + tile
            wanted = (where + 0 * column >= 0)[:, None]
            d_state += tl.load(d_at_slot + place, mask=wanted & inside, other=0.0)
    tl.store(d_initial + bh * K * V + tile, d_state, mask=inside)


@triton.jit(do_not_specialize=["T", "N"])
def pairs_back(
    q, k, v, beta, inverse, norm_k, norm_q, decay, d_output, u, d_u, d_v, p, pairs, d_beta,
    d_decay, scale, T, N,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, NORMALIZE: tl.constexpr, DECAY: tl.constexpr,
):  # fmt: skip
    """``p``, ``d_v``, the gradients of the chunk's pairs, and what these give to beta and decay."""
    pid = tl.program_id(0).to(tl.int64)
    n, bh = pid % N, pid // N
    i, column = tl.arange(0, C), tl.arange(0, BK)
    row, ok = token_rows(bh, n, i, T, H, C)
    square = i[:, None] * C + i[None, :]
    op = k.dtype.element_ty
    strength = tl.load(beta + row, mask=ok, other=0.0).to(tl.float32)
    x = tl.trans(tl.load(inverse + pid * C * C + square))
    d_within = tl.zeros([C, C], tl.float32)
    d_mixing = tl.zeros([C, C], tl.float32)
    d_strength = tl.zeros([C], tl.float32)
    for first in range(0, V, BV):
        part = first + tl.arange(0, BV)
        side = tl.dot(x, load_rows(d_u, row, ok, part, V), input_precision="ieee")
        written = tl.trans(load_rows(u, row, ok, part, V))
        asked = load_rows(d_output, row, ok, part, V)
        store_rows(p, row, ok, part, V, side)
        store_rows(d_v, row, ok, part, V, side * strength[:, None])
        d_strength += tl.sum(side * load_rows(v, row, ok, part, V).to(tl.float32), 1)
        d_within += tl.dot(asked, written, input_precision="ieee")
        d_mixing -= tl.dot(side.to(op), written, input_precision="ieee")
    keys = load_rows(k, row, ok, column, K)
    queries = load_rows(q, row, ok, column, K)
    products = tl.dot(keys, tl.trans(keys), input_precision="ieee")
    within = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    if NORMALIZE:
        norm = tl.load(norm_k + pid * C + i)
        products = products * norm[:, None] * norm[None, :]
        within = within * tl.load(norm_q + pid * C + i)[:, None] * norm[None, :]
    else:
        within = within * scale
    d_within = tl.where(i[:, None] >= i[None, :], d_within, 0.0)
    d_mixing = tl.where(i[:, None] > i[None, :], d_mixing, 0.0)
    if DECAY:  # a pair is a product times its decay: what it gives goes to both ends of the decay
        between = pair_decay(tl.load(decay + pid * C + i), i)
        d_within, d_mixing = d_within * between, d_mixing * between
    strengths = d_mixing * products
    d_strength += tl.sum(strengths, 1)
    if DECAY:
        both = strengths * strength[:, None] + d_within * within
        tl.store(d_decay + pid * C + i, tl.sum(both, 1) - tl.sum(both, 0))
    tl.store(d_beta + pid * C + i, d_strength)
    d_products = d_mixing * strength[:, None]
    place = pairs + pid * 2 * C * C + square
    tl.store(place, (d_products + tl.trans(d_products)).to(op))
    tl.store(place + C * C, d_within.to(op))


@triton.jit
def add_pairs(
    d, x, norm, factor, pairs, pid, column, T, N,
    H: tl.constexpr, K: tl.constexpr, C: tl.constexpr, NORMALIZE: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """``d [C, BK]`` plus the sum over tokens j of ``pairs_ij x_j``, or of ``pairs_ji`` (``BACK``).

    Sixteen tokens at a time: all of them, as operands, take half of the registers.
    """
    i, block = tl.arange(0, C), tl.arange(0, 16)
    n, bh = pid % N, pid // N
    for first in range(0, C, 16):
        j = first + block
        row, ok = token_rows(bh, n, j, T, H, C)
        rows = load_rows(x, row, ok, column, K)
        place = j[None, :] * C + i[:, None] if BACK else i[:, None] * C + j[None, :]
        weights = tl.load(pairs + place).to(tl.float32) * factor
        if NORMALIZE:
            weights = weights * tl.load(norm + pid * C + j)[None, :]
        d += tl.dot(weights.to(rows.dtype), rows, input_precision="ieee")
    return d


@triton.jit(do_not_specialize=["T", "N"])
def queries_keys_back(
    q, k, beta, norm_k, norm_q, decay, states, d_next, d_output, u, p, pairs, d_beta, d_decay,
    d_q, d_k, d_strength, d_log_decay, scale, T, N,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, NORMALIZE: tl.constexpr, DECAY: tl.constexpr,
):  # fmt: skip
    """``d_q``, ``d_k``, and the last parts of the gradients of beta and decay."""
    pid = tl.program_id(0).to(tl.int64)
    n, bh = pid % N, pid // N
    i, column = tl.arange(0, C), tl.arange(0, BK)
    row, ok = token_rows(bh, n, i, T, H, C)
    strength = tl.load(beta + row, mask=ok, other=0.0).to(tl.float32)
    one = strength * 0.0 + 1.0
    norm_of_k, norm_of_q, grow, fall = one, one * scale, one, one
    factor = scale
    if NORMALIZE:
        factor = 1.0  # the scale is in the norms of q
        norm_of_k = tl.load(norm_k + pid * C + i)
        norm_of_q = tl.load(norm_q + pid * C + i)
    if DECAY:
        total = tl.load(decay + pid * C + i)
        last = tl.load(decay + pid * C + C - 1)
        grow, fall = tl.exp(total), tl.exp(last - total)
    # One tile of gradients at a time, or two: three do not fit the registers.
    d_queries = tl.zeros([C, BK], tl.float32)
    for first in range(0, V, BV):
        part = first + tl.arange(0, BV)
        state = load_columns(states + pid * K * V, column, part, K, V)
        asked = load_rows(d_output, row, ok, part, V)
        d_queries += tl.dot(asked, state, input_precision="ieee")
    d_queries = d_queries * grow[:, None]
    scaled = load_rows(q, row, ok, column, K).to(tl.float32) * norm_of_q[:, None]
    from_queries = one
    if DECAY:
        from_queries = tl.sum(d_queries * scaled, 1)
    d_within = pairs + pid * 2 * C * C + C * C
    d_queries = add_pairs(
        d_queries, k, norm_k, 1.0, d_within, pid, column, T, N, H, K, C, NORMALIZE, False
    )  # fmt: skip
    if NORMALIZE:
        along = tl.sum(scaled * d_queries, 1) / (scale * scale)
        d_queries = d_queries - scaled * along[:, None]
    store_rows(d_q, row, ok, column, K, d_queries * norm_of_q[:, None])

    d_in = tl.zeros([C, BK], tl.float32)
    d_out = tl.zeros([C, BK], tl.float32)
    d_keep = 0.0
    for first in range(0, V, BV):
        part = first + tl.arange(0, BV)
        state = load_columns(states + pid * K * V, column, part, K, V)
        leaving = load_columns(d_next + pid * K * V, column, part, K, V)
        d_in -= tl.dot(load_rows(p, row, ok, part, V), state, input_precision="ieee")
        d_out += tl.dot(load_rows(u, row, ok, part, V), leaving, input_precision="ieee")
        if DECAY:
            d_keep += tl.sum(tl.sum(state.to(tl.float32) * leaving.to(tl.float32), 1), 0)
    d_in = d_in * grow[:, None]
    d_out = d_out * fall[:, None]
    keys = load_rows(k, row, ok, column, K)
    unit = keys.to(tl.float32) * norm_of_k[:, None]
    from_in = tl.sum(d_in * unit, 1)
    more = tl.load(d_beta + pid * C + i) + from_in
    tl.store(d_strength + row, more.to(d_strength.dtype.element_ty), mask=ok)
    if DECAY:
        from_out = tl.sum(d_out * unit, 1)
        d_total = tl.load(d_decay + pid * C + i) + from_in * strength + from_queries
        # What leaves decays from its token to the chunk's end: by all decays after the token's own.
        # No sum over the chunk: of products' rows Triton 3.6 and 3.7 compile none for sm_100.
        back = tl.cumsum(d_total, 0, reverse=True) + tl.cumsum(from_out, 0) - from_out
        back += d_keep * tl.exp(last)
        tl.store(d_log_decay + row, back.to(d_log_decay.dtype.element_ty), mask=ok)
    d_keys = d_in * strength[:, None] + d_out
    d_products = pairs + pid * 2 * C * C
    d_keys = add_pairs(
        d_keys, k, norm_k, 1.0, d_products, pid, column, T, N, H, K, C, NORMALIZE, False
    )  # fmt: skip
    d_keys = add_pairs(
        d_keys, q, norm_q, factor, d_within, pid, column, T, N, H, K, C, NORMALIZE, True
    )  # fmt: skip
    if NORMALIZE:
        d_keys = (d_keys - unit * tl.sum(unit * d_keys, 1)[:, None]) * norm_of_k[:, None]
    store_rows(d_k, row, ok, column, K, d_keys)
