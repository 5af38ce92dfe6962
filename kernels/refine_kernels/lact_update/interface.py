"""LaCT's fast weights over whole rows: checks, and the states between tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refine_kernels.backends import CompiledBackend
from refine_kernels.host import on_host, rows_at, to_device
from refine_kernels.lact_update.choice import choose_terms
from refine_kernels.lact_update.directions import Written, direction
from refine_kernels.lact_update.entries import Bank
from refine_kernels.lact_update.precision import Precision, operand_dtype
from refine_kernels.lact_update.reading import read
from refine_kernels.lact_update.shared import SharedFastState
from refine_kernels.lact_update.stacked import StackedTerms, stacked_direction, stacked_read
from refine_kernels.lact_update.step import row_norms, start, step
from refine_kernels.lact_update.terms import Terms
from refine_kernels.lact_update.weights import FastState, FastTokens, FastWeights, UpdateRule
from refine_kernels.records import cat_rows, cat_tokens, check_shapes, map_numbers, rows_of


@dataclass(frozen=True, slots=True)
class Entering:
    """The states that enter the chunks of ``B`` rows."""

    chunks: list[FastState]  # one for each chunk, matrices [B, H, ...]
    joined: FastState | None  # all of them [chunks * B, H, ...], which they are parts of

    def bank(self, chunk: Tensor, row: Tensor) -> Bank:
        """Rows that use the states of the ``chunk [B, S]`` of their ``row [B, S]``."""
        states, batch = self.joined, len(self.chunks[0].applied.w0)
        if states is None:
            used = chunk.unique()  # of the others there are no gradients to be joined
            states = map_numbers(cat_rows, *(self.chunks[n] for n in used.tolist()))
            chunk = torch.searchsorted(used, chunk)
        return Bank.of(states, (chunk * batch + row).flatten())


@dataclass(frozen=True, slots=True)
class FastTrail:
    """What a pass keeps, so that it can give its state after any number of tokens."""

    entering: Entering
    tokens: FastTokens  # [B, E, H, ...], every row at the start of a chunk
    offset: Tensor | None  # [B] on the host, tokens of a row before this pass's; None: none
    chunk_size: int

    def at(self, positions: Tensor) -> SharedFastState:
        """The states after ``positions [B, S]`` tokens of the pass, rows flattened.

        The positions are read on the host: once, if all layers are given the same tensor.
        """
        batch, positions = positions.shape[0], on_host(positions)
        if self.offset is not None:
            positions = positions + self.offset[:, None]
        size, last = self.chunk_size, len(self.entering.chunks) - 1
        # A full chunk without an entry after it is kept as tokens; the next token updates.
        chunk = (positions // size).clamp(0, last)
        fill = (positions - chunk * size).flatten()
        row = torch.arange(batch)[:, None].expand_as(positions)
        bank = self.entering.bank(chunk, row)
        room = size - int(fill.max())
        start = (chunk * size).flatten()
        taken = torch.zeros_like(fill)
        return SharedFastState(bank, self.tokens, row.flatten(), start, fill, taken, room)


@dataclass(frozen=True, slots=True)
class FastOutput:
    """What one pass returns."""

    output: Tensor  # [B, T, H, d] in q's type
    trail: FastTrail


def lact_update(
    q: Tensor,
    tokens: FastTokens,
    initial: FastWeights,
    rule: UpdateRule,
    state: SharedFastState | None = None,
    backend: CompiledBackend = "auto",
    precision: Precision = "auto",
) -> FastOutput:
    """Read whole rows (equations in ``reference.py``), differentiably.

    Args:
        q: queries ``[B, T, H, d]``.
        tokens: keys, values, rates and momentum of the same tokens.
        initial: weights ``[H, ...]`` of an empty text; their row norms hold for the whole text.
        rule: how the weights change.
        state: what the rows continue; an empty text if left out.
        backend: of the element-wise work; see
            :func:`refine_kernels.lact_update.choice.choose_terms`.
        precision: of the operands of matrix products. ``auto``: bfloat16 on CUDA for tokens of 16
            bits or under an autocast, else the states' float32 (float64 for float64 weights).

    Raises:
        ValueError: shapes that do not fit, or a backend that cannot run.
    """
    _check(q, tokens, initial)
    dtype = torch.promote_types(initial.w0.dtype, torch.float32)
    batch, length, heads = q.shape[:3]
    operands, inner = operand_dtype(precision, q, dtype), initial.w0.shape[-2]
    terms = choose_terms(backend, q.device, dtype, operands, length * heads * inner, inner)
    with torch.autocast(q.device.type, enabled=False):
        initial = initial.map(lambda w: w.to(dtype))
        norms = row_norms(initial)
        if state is None:
            entering = start(initial, rule, tokens.momentum is not None)
            entering = entering.map(lambda w: w.expand(batch, *w.shape))
            output, states = _scan(q, tokens, entering, norms, rule, terms, operands)
            return FastOutput(output, FastTrail(states, tokens, None, rule.chunk_size))
        rows = state.fold()
        # Tokens of a row's unfinished chunk, ``fill`` of the ``before`` that are kept, come first.
        fill, before = to_device(rows.fill, q.device)[:, None], rows.source.k.shape[1]
        offset = torch.arange(before + length, device=q.device)
        shifted = (offset + before - fill).clamp(max=before + length - 1)
        index = torch.where(offset < fill, offset, shifted)
        number = torch.arange(batch, device=q.device)[:, None]
        joined = map_numbers(cat_tokens, rows.source, tokens)
        tokens = joined.map(lambda x: rows_of(x, index + number * (before + length)))
        # It has no queries: any stands in.
        queries = rows_of(q, (offset - fill).clamp(0, length - 1) + number * length)
        entering = rows.bank.states.map(lambda w: rows_at(w, rows.bank.index))
        output, states = _scan(queries, tokens, entering, norms, rule, terms, operands)
        output = rows_of(output, offset[:length] + fill + number * output.shape[1])
        return FastOutput(output, FastTrail(states, tokens, rows.fill, rule.chunk_size))


def _scan(
    q: Tensor,
    tokens: FastTokens,
    state: FastState,
    norms: FastWeights,
    rule: UpdateRule,
    terms: Terms | StackedTerms,
    operands: torch.dtype,
) -> tuple[Tensor, Entering]:
    """Reads ``E`` tokens of ``B`` rows, all at the start of a chunk; as ``state`` enters the first.

    Returns ``f(q) [B, E, H, d]``, and what enters each of the ``ceil(E / chunk_size)`` chunks: the
    last one, complete or not, is read but does not update. Without gradients they lie side by side,
    so that states at positions need not copy them.
    """
    dtype = state.applied.w0.dtype
    stacked = isinstance(terms, StackedTerms)
    write: Any
    look: Any
    write, look = (stacked_direction, stacked_read) if stacked else (direction, read)
    k, v = (x.to(operands) for x in (tokens.k, tokens.v))
    written = Written.of(k, v, tokens.rates.to(dtype))
    size, last = rule.chunk_size, (q.shape[1] - 1) // rule.chunk_size
    keep: Sequence[Tensor | None] = [None] * last
    if tokens.momentum is not None and last > 0:
        full = tokens.momentum[:, : last * size].to(dtype)
        keep = full.unflatten(1, (last, size)).mean(2).unbind(1)
    joined = None
    if not torch.is_grad_enabled():
        joined = state.map(lambda w: w.new_empty(last + 1, *w.shape))
        state = _placed(state, joined, 0)
    entering = [state]
    for i in range(last):
        found, written = write(state.applied, written, i * size, (i + 1) * size, terms)
        state = step(state, found, keep[i], norms, rule)
        if joined is not None:
            state = _placed(state, joined, i + 1)
        entering.append(state)
    # What is read changes no weights, so all chunks are read at once.
    output = look([each.applied for each in entering], q.to(operands), size, terms)
    joined = None if joined is None else joined.map(lambda w: w.flatten(0, 1))
    return output.to(q.dtype), Entering(entering, joined)


def _placed(state: FastState, joined: FastState, number: int) -> FastState:
    """The ``state``, copied to its place among all."""
    return map_numbers(lambda places, w: places[number].copy_(w), joined, state)


def _check(q: Tensor, tokens: FastTokens, initial: FastWeights) -> None:
    batch, length, heads, width = q.shape
    inner, rates = initial.w0.shape[-2], tokens.rates.shape[-1]
    if rates not in (3, 3 * width) or (rates != 3 and inner != width):
        raise ValueError(f"{rates} rates for each token, expected 3, or 3 x {width} if h = d")
    check_shapes(
        k=(tokens.k, (batch, length, heads, width)),
        v=(tokens.v, (batch, length, heads, width)),
        w0=(initial.w0, (heads, inner, width)),
        w1=(initial.w1, (heads, width, inner)),
        w2=(initial.w2, (heads, inner, width)),
        rates=(tokens.rates, (batch, length, heads, rates)),
        momentum=(tokens.momentum, (batch, length, heads)),
    )
    if length == 0:
        raise ValueError("lact_update needs at least one token")
