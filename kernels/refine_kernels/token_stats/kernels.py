"""Triton kernels of token statistics: one pass over the logits of a block each way.

``logits [rows, STRIDE]``, of which the first ``V`` columns count, are those of tokens ``start`` and
after; the statistics ``[M]`` are of all tokens. A program has one row.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Below every logit, and finite: differences to it are numbers.
FLOOR = tl.constexpr(-1e30)


@triton.jit(do_not_specialize=["start"])
def statistics(
    logits, targets, log_sum, logprob, entropy, correct, start,
    V: tl.constexpr, STRIDE: tl.constexpr, BV: tl.constexpr, TARGETS: tl.constexpr,
    ENTROPY: tl.constexpr, CORRECT: tl.constexpr,
):  # fmt: skip
    """``log sum e^z``, and what is asked for of: target's log-probability, entropy, correctness.

    Each column of a tile keeps its largest logit, where it was, and sums relative to it; they are
    joined at the end.
    """
    row = tl.program_id(0).to(tl.int64)
    token = start + row
    lane = tl.arange(0, BV)
    largest = tl.full([BV], FLOOR, tl.float32)
    total = tl.zeros([BV], tl.float32)
    weighted = tl.zeros([BV], tl.float32)  # sum of e^(z - largest) (z - largest)
    best = tl.zeros([BV], tl.int32)
    for first in range(0, V, BV):
        column = first + lane
        z = tl.load(logits + row * STRIDE + column, mask=column < V, other=0.0).to(tl.float32)
        z = tl.where(column < V, z, FLOOR)  # which is not a number of 16 bits
        step = z - largest
        fall = tl.exp(-tl.abs(step))
        higher = step > 0
        if ENTROPY:
            risen = fall * (weighted - step * total)
            weighted = tl.where(higher, risen, weighted + fall * step)
        total = tl.where(higher, total * fall + 1.0, total + fall)
        if CORRECT:
            best = tl.where(higher, column, best)
        largest = tl.where(higher, z, largest)
    top = tl.max(largest, 0)
    step = largest - top
    fall = tl.exp(step)
    log_total = tl.log(tl.sum(total * fall, 0))
    tl.store(log_sum + token, top + log_total)
    if ENTROPY:
        mean = tl.sum(fall * (weighted + step * total), 0) / tl.sum(total * fall, 0)
        tl.store(entropy + token, log_total - mean)
    if TARGETS:
        target = tl.load(targets + token)
        place = logits + row * STRIDE + tl.maximum(target, 0)
        picked = tl.load(place).to(tl.float32) - top - log_total
        tl.store(logprob + token, tl.where(target >= 0, picked, 0.0))
        if CORRECT:
            found = tl.min(tl.where(largest == top, best, V), 0)
            tl.store(correct + token, (found == target).to(tl.int8))


@triton.jit(do_not_specialize=["start"])
def logits_back(
    logits, targets, log_sum, entropy, d_logprob, d_entropy, start,
    V: tl.constexpr, STRIDE: tl.constexpr, BV: tl.constexpr, TARGETS: tl.constexpr,
    ENTROPY: tl.constexpr,
):  # fmt: skip
    """The gradient of the logits, in their place."""
    row = tl.program_id(0).to(tl.int64)
    token = start + row
    column = tl.program_id(1) * BV + tl.arange(0, BV)
    inside = column < V
    place = logits + row * STRIDE + column
    logp = tl.load(place, mask=inside, other=0.0).to(tl.float32) - tl.load(log_sum + token)
    slope = tl.zeros([BV], tl.float32)
    if ENTROPY:
        slope += tl.load(d_entropy + token) * (logp + tl.load(entropy + token))
    target, given = -1, 0.0
    if TARGETS:
        target = tl.load(targets + token)
        given = tl.where(target >= 0, tl.load(d_logprob + token), 0.0)
        slope += given
    d = -tl.exp(logp) * slope
    if TARGETS:
        d += tl.where(column == target, given, 0.0)
    tl.store(place, d.to(logits.dtype.element_ty), mask=inside)
