"""Triton kernels of short continuations of shared states. Names are those of the README.

A tile has the rows of ``R // TP`` forks, ``TP`` for each: first the ``P`` writes that the fork has
made already (``OLD``), then its ``L`` new tokens, then rows that hold zeros. Products with a state
run on tensor cores; sums inside a fork are few, and are done in float32 without them. Buffers:

    q, k [G*N, L, H, K], v, output [G*N, L, H, V], beta, log_decay [G*N, L, H]
    matrix [G, H, K, V] float32
    keys [G, H, N, P, K], writes [G, H, N, P, V], decay [G, H, N, P] float32: what came before
    keys_after, writes_after, decay_after: the same with P + L; d_u as writes_after
    pairs [G, H, N, 2, TP, TP] float32: ``D_ij k_i . k_j`` and ``D_ij q_i . k_j``
"""

from __future__ import annotations

import triton
import triton.language as tl

from refine_kernels.delta_rule.kernels_forward import diagonal_blocks, load_rows, store_rows

# Tokens times width of keys: of more, the loop over tokens needs too many registers unrolled.
UNROLLED = tl.constexpr(8 * 128)


@triton.jit
def split(wide, op: tl.constexpr):
    """A float32 tensor as the sum of two in 16 bits; of float32 operands the second is 0."""
    high = wide.to(op)
    return high, (wide - high.to(tl.float32)).to(op)


@triton.jit
def times(exact, high, low, BOTH: tl.constexpr):
    """``exact (high + low)``, or without ``low``; sums are float32."""
    found = tl.dot(exact, high, input_precision="ieee")
    if BOTH:
        found += tl.dot(exact, low, input_precision="ieee")
    return found


@triton.jit
def fork_rows(first, g, h, gh, N, P, L, H: tl.constexpr, R: tl.constexpr, TP: tl.constexpr):
    """Of each row of a tile: is it new, is it old, and its places in the buffers."""
    r = tl.arange(0, R)
    fork, j = first + r // TP, r % TP
    there = fork < N
    new = there & (j >= P) & (j < P + L)
    old = there & (j < P)
    token = ((g * N + fork) * L + (j - P)) * H + h
    before = (gh * N + fork) * P + j
    after = (gh * N + fork) * (P + L) + j
    return new, old, token, before, after


@triton.jit
def running_decay(
    log_decay, decay, new, old, token, before, P,
    R: tl.constexpr, TP: tl.constexpr, OLD: tl.constexpr,
):  # fmt: skip
    """The sums of log-decay since the matrix, ``[R]``."""
    g = tl.load(log_decay + token, mask=new, other=0.0).to(tl.float32)
    total = tl.reshape(tl.cumsum(tl.reshape(g, [R // TP, TP]), 1), [R])
    if OLD:
        j = tl.arange(0, R) % TP
        earlier = tl.load(decay + before, mask=old, other=0.0)
        last = tl.sum(tl.reshape(tl.where(j == P - 1, earlier, 0.0), [R // TP, TP]), 1)
        last = tl.reshape(last[:, None] + tl.zeros([R // TP, TP], tl.float32), [R])
        total = tl.where(old, earlier, total + last)
    return total


@triton.jit
def row_norms(rows, eps: tl.constexpr = 1e-6):
    """One over the L2 norms of rows."""
    wide = rows.to(tl.float32)
    return tl.rsqrt(tl.sum(wide * wide, 1) + eps)


@triton.jit
def fork_pairs(
    new_keys, queries, high, low, norm_k, norm_q, total,
    R: tl.constexpr, TP: tl.constexpr, DECAY: tl.constexpr, OLD: tl.constexpr,
):  # fmt: skip
    """``D_ij k_i . k_j`` for j before i in the same fork, ``D_ij q_i . k_j`` with i itself."""
    r = tl.arange(0, R)
    row, column = r[:, None], r[None, :]
    same = (row // TP) == (column // TP)
    high, low = tl.trans(high), tl.trans(low)
    alike = times(new_keys, high, low, OLD) * norm_k[:, None] * norm_k[None, :]
    asked = times(queries, high, low, OLD) * norm_q[:, None] * norm_k[None, :]
    if DECAY:
        between = fork_decay(total, R, TP)
        alike, asked = alike * between, asked * between
    alike = tl.where(same & (row > column), alike, 0.0)
    asked = tl.where(same & (row >= column), asked, 0.0)
    return alike, asked


@triton.jit
def fork_decay(total, R: tl.constexpr, TP: tl.constexpr):
    """``e^{G_i - G_j}`` for ``j <= i`` of the same fork, else 1."""
    r = tl.arange(0, R)
    row, column = r[:, None], r[None, :]
    lower = ((row // TP) == (column // TP)) & (row >= column)
    return tl.exp(tl.where(lower, total[:, None] - total[None, :], 0.0))


@triton.jit
def load_keys(k, keys, new, old, token, before, column, K: tl.constexpr, OLD: tl.constexpr):
    """New keys, and all keys of the tile: of old ones, which are float32, as a sum of two."""
    new_keys = load_rows(k, token, new, column, K)
    high, low = new_keys, new_keys
    if OLD:
        old_high, low = split(load_rows(keys, before, old, column, K), k.dtype.element_ty)
        high = tl.where(old[:, None], old_high, new_keys)
    return new_keys, high, low


@triton.jit
def fork_norms(new_keys, queries, old, scale, NORMALIZE: tl.constexpr):
    """What keys and queries are multiplied by; old keys are normalised."""
    norm_k = tl.where(old, 1.0, 1.0)
    norm_q = norm_k * scale
    if NORMALIZE:
        norm_k = tl.where(old, 1.0, row_norms(new_keys))
        norm_q = row_norms(queries) * scale
    return norm_k, norm_q


@triton.jit
def write(u, found, alike, asked, s, TP: tl.constexpr):
    """What the write of token s, now known, takes from later writes and gives to outputs."""
    j = tl.arange(0, TP)
    written = tl.sum(tl.where((j == s)[None, :, None], u, 0.0), 1)[:, None, :]
    chosen = (j == s)[None, None, :]
    u -= tl.sum(tl.where(chosen, alike, 0.0), 2)[:, :, None] * written
    found += tl.sum(tl.where(chosen, asked, 0.0), 2)[:, :, None] * written
    return u, found


@triton.jit
def write_back(d, given, alike, asked, s, TP: tl.constexpr):
    """What the output of token s gives to writes, and then its write to those before."""
    chosen = (tl.arange(0, TP) == s)[None, :, None]
    asks = tl.sum(tl.where(chosen, asked, 0.0), 1)[:, :, None]
    d += asks * tl.sum(tl.where(chosen, given, 0.0), 1)[:, None, :]
    takes = tl.sum(tl.where(chosen, alike, 0.0), 1)[:, :, None]
    d -= takes * tl.sum(tl.where(chosen, d, 0.0), 1)[:, None, :]
    return d


@triton.jit(do_not_specialize=["N", "P", "L"])
def forks(
    q, k, v, beta, log_decay, matrix, keys, writes, decay, output, keys_after, writes_after,
    decay_after, scale, N, P, L,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    R: tl.constexpr, TP: tl.constexpr, NORMALIZE: tl.constexpr, DECAY: tl.constexpr,
    OLD: tl.constexpr,
):  # fmt: skip
    """Outputs and writes of all forks of a state, of one head and some columns of the values."""
    gh = tl.program_id(0).to(tl.int64)
    g, h = gh // H, gh % H
    F: tl.constexpr = R // TP
    column, part = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    once = tl.program_id(1) + 0 * tl.arange(0, R) == 0  # keys and decay: by one program alone
    op = k.dtype.element_ty
    state = load_rows(matrix + gh * K * V, column, column < K, part, V)
    state, state_low = split(state, op)
    for first in range(0, N, F):
        new, old, token, before, after = fork_rows(first, g, h, gh, N, P, L, H, R, TP)
        there = new | old
        queries = load_rows(q, token, new, column, K)
        new_keys, high, low = load_keys(k, keys, new, old, token, before, column, K, OLD)
        norm_k, norm_q = fork_norms(new_keys, queries, old, scale, NORMALIZE)
        strength = tl.load(beta + token, mask=new, other=0.0).to(tl.float32)
        from_keys, from_queries = norm_k, norm_q
        total = norm_k
        if DECAY:
            total = running_decay(log_decay, decay, new, old, token, before, P, R, TP, OLD)
            from_keys, from_queries = norm_k * tl.exp(total), norm_q * tl.exp(total)
            tl.store(decay_after + after, total, mask=there & once)
        alike, asked = fork_pairs(
            new_keys, queries, high, low, norm_k, norm_q, total, R, TP, DECAY, OLD
        )  # fmt: skip
        alike = diagonal_blocks(alike * strength[:, None], R, TP)
        asked = diagonal_blocks(asked, R, TP)
        read = times(new_keys, state, state_low, True) * from_keys[:, None]
        u = strength[:, None] * (load_rows(v, token, new, part, V).to(tl.float32) - read)
        if OLD:
            u += load_rows(writes, before, old, part, V)
        found = times(queries, state, state_low, True) * from_queries[:, None]
        u, found = tl.reshape(u, [F, TP, BV]), tl.reshape(found, [F, TP, BV])
        if TP * BK <= UNROLLED:
            for s in tl.static_range(TP):
                u, found = write(u, found, alike, asked, s, TP)
        else:
            for s in range(0, TP):
                u, found = write(u, found, alike, asked, s, TP)
        store_rows(output, token, new, part, V, tl.reshape(found, [R, BV]))
        store_rows(writes_after, after, there, part, V, tl.reshape(u, [R, BV]))
        kept = new_keys.to(tl.float32) * norm_k[:, None]
        if OLD:
            kept += load_rows(keys, before, old, column, K)
        store_rows(keys_after, after, there & once, column, K, kept)


@triton.jit(do_not_specialize=["N", "P", "L"])
def forks_states_back(
    q, k, beta, log_decay, keys, decay, d_output, d_writes_after, pairs, d_v, d_u, d_matrix,
    scale, N, P, L,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    R: tl.constexpr, TP: tl.constexpr, NORMALIZE: tl.constexpr, DECAY: tl.constexpr,
    OLD: tl.constexpr, AFTER: tl.constexpr,
):  # fmt: skip
    """Gradients of the writes and, summed over all forks of a state, of some of its columns."""
    gh = tl.program_id(0).to(tl.int64)
    g, h = gh // H, gh % H
    F: tl.constexpr = R // TP
    column, part = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    op = k.dtype.element_ty
    inside = (column < K)[:, None] & (part < V)[None, :]
    tile = gh * K * V + column[:, None] * V + part[None, :]
    d_state = tl.zeros([BK, BV], tl.float32)
    for first in range(0, N, F):
        new, old, token, before, after = fork_rows(first, g, h, gh, N, P, L, H, R, TP)
        there = new | old
        queries = load_rows(q, token, new, column, K)
        new_keys, high, low = load_keys(k, keys, new, old, token, before, column, K, OLD)
        norm_k, norm_q = fork_norms(new_keys, queries, old, scale, NORMALIZE)
        strength = tl.load(beta + token, mask=new, other=0.0).to(tl.float32)
        from_keys, from_queries = norm_k, norm_q
        total = norm_k
        if DECAY:
            total = running_decay(log_decay, decay, new, old, token, before, P, R, TP, OLD)
            from_keys, from_queries = norm_k * tl.exp(total), norm_q * tl.exp(total)
        alike, asked = fork_pairs(
            new_keys, queries, high, low, norm_k, norm_q, total, R, TP, DECAY, OLD
        )  # fmt: skip
        alike, asked = diagonal_blocks(alike, R, TP), diagonal_blocks(asked, R, TP)
        fork, j = tl.arange(0, F)[:, None, None], tl.arange(0, TP)
        place = (gh * N + first + fork) * 2 * TP * TP + j[None, :, None] * TP + j[None, None, :]
        mine = (first + fork + 0 * place < N) & (tl.program_id(1) + 0 * place == 0)
        tl.store(pairs + place, alike, mask=mine)
        tl.store(pairs + place + TP * TP, asked, mask=mine)
        alike = alike * tl.reshape(strength, [F, TP])[:, :, None]
        given = load_rows(d_output, token, new, part, V).to(tl.float32)
        d_state += tl.dot(
            tl.trans(queries), (given * from_queries[:, None]).to(op), input_precision="ieee"
        )
        given = tl.reshape(given, [F, TP, BV])
        if AFTER:
            d = tl.reshape(load_rows(d_writes_after, after, there, part, V), [F, TP, BV])
        else:
            d = given * 0.0
        if TP * BK <= UNROLLED:
            for back in tl.static_range(TP):
                d = write_back(d, given, alike, asked, TP - 1 - back, TP)
        else:
            for back in range(0, TP):
                d = write_back(d, given, alike, asked, TP - 1 - back, TP)
        d = tl.reshape(d, [R, BV])
        store_rows(d_u, after, there, part, V, d)
        d = d * strength[:, None]  # of new tokens; 0 for the others
        store_rows(d_v, token, new, part, V, d)
        # Not a difference, as in ``recur_back``.
        d_state += tl.dot(
            tl.trans(new_keys), (-d * from_keys[:, None]).to(op), input_precision="ieee"
        )
    tl.store(d_matrix + tile, d_state, mask=inside)


@triton.jit(do_not_specialize=["N", "P", "L"])
def forks_rows_back(
    q, k, v, beta, log_decay, matrix, keys, decay, writes_after, d_output, pairs, d_u,
    d_keys_after, d_decay_after, d_q, d_k, d_beta, d_log_decay, d_keys, d_decay, scale, N, P, L,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    R: tl.constexpr, TP: tl.constexpr, NORMALIZE: tl.constexpr, DECAY: tl.constexpr,
    OLD: tl.constexpr, AFTER: tl.constexpr,
):  # fmt: skip
    """Gradients of queries, keys, strengths and decay of the forks of a tile."""
    F: tl.constexpr = R // TP
    tiles = tl.cdiv(N, F)  # those of a state are neighbours: they read the same
    gh = (tl.program_id(0) // tiles).to(tl.int64)
    g, h = gh // H, gh % H
    first = (tl.program_id(0) % tiles) * F
    column = tl.arange(0, BK)
    op = k.dtype.element_ty
    new, old, token, before, after = fork_rows(first, g, h, gh, N, P, L, H, R, TP)
    there = new | old
    strength = tl.load(beta + token, mask=new, other=0.0).to(tl.float32)
    # Keys along the first axis: warps share it, and would repeat the few rows of a tile.
    d_queries = tl.zeros([BK, R], tl.float32)
    d_in = tl.zeros([BK, R], tl.float32)
    d_asked = tl.zeros([R, R], tl.float32)
    d_alike = tl.zeros([R, R], tl.float32)
    d_strength = tl.zeros([R], tl.float32)
    for part_first in range(0, V, BV):
        part = part_first + tl.arange(0, BV)
        state = load_rows(matrix + gh * K * V, column, column < K, part, V).to(op)
        given = load_rows(d_output, token, new, part, V)
        d = load_rows(d_u, after, new, part, V)
        written = tl.trans(load_rows(writes_after, after, there, part, V).to(op))
        values = load_rows(v, token, new, part, V).to(tl.float32)
        d_strength += tl.sum(d * values, 1)
        d_queries += tl.dot(state, tl.trans(given), input_precision="ieee")
        d_in += tl.dot(state, tl.trans(d.to(op)), input_precision="ieee")
        d_asked += tl.dot(given, written, input_precision="ieee")
        d_alike += tl.dot(d.to(op), written, input_precision="ieee")
    d_queries, d_in = tl.trans(d_queries), tl.trans(d_in)
    d_alike, d_asked = diagonal_blocks(d_alike, R, TP), diagonal_blocks(d_asked, R, TP)
    fork, j = first + tl.arange(0, F)[:, None, None], tl.arange(0, TP)
    i = j[None, :, None]
    place = (gh * N + fork) * 2 * TP * TP + i * TP + j[None, None, :]
    alike = tl.load(pairs + place, mask=fork + 0 * place < N, other=0.0)
    asked = tl.load(pairs + place + TP * TP, mask=fork + 0 * place < N, other=0.0)
    queries = load_rows(q, token, new, column, K)
    keys_here = load_rows(k, token, new, column, K)
    norm_k, norm_q = fork_norms(keys_here, queries, old, scale, NORMALIZE)
    unit = keys_here.to(tl.float32) * norm_k[:, None]
    asking = queries.to(tl.float32) * norm_q[:, None]
    if DECAY:
        total = running_decay(log_decay, decay, new, old, token, before, P, R, TP, OLD)
        grow = tl.exp(total)[:, None]
        d_queries, d_in = d_queries * grow, d_in * grow
    from_in = tl.sum(d_in * unit, 1)
    d_strength -= from_in + tl.reshape(tl.sum(d_alike * alike, 2), [R])
    tl.store(d_beta + token, d_strength.to(d_beta.dtype.element_ty), mask=new)
    d_alike = d_alike * -tl.reshape(strength, [F, TP])[:, :, None]
    if DECAY:
        both = d_alike * alike + d_asked * asked
        d_total = tl.sum(both, 2) - tl.sum(both, 1)
        more = tl.sum(d_queries * asking, 1) - strength * from_in
        if AFTER:
            more += tl.load(d_decay_after + after, mask=there, other=0.0)
        d_total += tl.reshape(more, [F, TP])
        of_new = tl.where(j[None, :] >= P, d_total, 0.0)
        sum_of_new = tl.sum(of_new, 1)[:, None]
        back = sum_of_new - tl.cumsum(of_new, 1) + of_new
        d_g = tl.reshape(back, [R]).to(d_log_decay.dtype.element_ty)
        tl.store(d_log_decay + token, d_g, mask=new)
        if OLD:
            d_earlier = d_total + tl.where(j[None, :] == P - 1, sum_of_new, 0.0)
            tl.store(d_decay + before, tl.reshape(d_earlier, [R]), mask=old)
        # Above the diagonal, which does not count, the difference is not looked at.
        lines = tl.reshape(total, [F, TP])
        falls = tl.where(i >= j[None, None, :], lines[:, :, None] - lines[:, None, :], 0.0)
        d_alike, d_asked = d_alike * tl.exp(falls), d_asked * tl.exp(falls)
    d_alike = tl.where(i > j[None, None, :], d_alike, 0.0)
    d_asked = tl.where(i >= j[None, None, :], d_asked, 0.0)

    all_keys = unit
    if OLD:
        all_keys += load_rows(keys, before, old, column, K)
    d_queries = tl.reshape(d_queries, [F, TP, BK])
    d_keys_in = tl.reshape(d_in * -strength[:, None], [F, TP, BK])
    all_keys, all_queries = tl.reshape(all_keys, [F, TP, BK]), tl.reshape(asking, [F, TP, BK])
    for s in range(0, TP):
        key = tl.sum(tl.where((j == s)[None, :, None], all_keys, 0.0), 1)[:, None, :]
        query = tl.sum(tl.where((j == s)[None, :, None], all_queries, 0.0), 1)[:, None, :]
        in_row, in_column = (j == s)[None, None, :], (j == s)[None, :, None]
        asks = tl.sum(tl.where(in_row, d_asked, 0.0), 2)
        pair = tl.sum(tl.where(in_row, d_alike, 0.0), 2)
        pair += tl.sum(tl.where(in_column, d_alike, 0.0), 1)
        asked_by = tl.sum(tl.where(in_column, d_asked, 0.0), 1)
        d_queries += asks[:, :, None] * key
        d_keys_in += pair[:, :, None] * key + asked_by[:, :, None] * query
    d_queries = tl.reshape(d_queries, [R, BK])
    if NORMALIZE:
        along = tl.sum(d_queries * asking, 1) / (scale * scale)
        d_queries -= asking * along[:, None]
    store_rows(d_q, token, new, column, K, d_queries * norm_q[:, None])
    d_all = tl.reshape(d_keys_in, [R, BK])
    if AFTER:
        d_all += load_rows(d_keys_after, after, there, column, K)
    if OLD:
        store_rows(d_keys, before, old, column, K, d_all)
    if NORMALIZE:
        d_all = (d_all - unit * tl.sum(d_all * unit, 1)[:, None]) * norm_k[:, None]
    store_rows(d_k, token, new, column, K, d_all)
