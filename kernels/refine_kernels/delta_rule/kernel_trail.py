"""Whole rows and states at positions by the Triton kernels.

Positions that are known beforehand: the recurrence stores, in one masked store, the state that
enters each of their chunks, and ``u`` there. Positions that are not: it stores the state of every
``EVERY``-th chunk, and a position's piece is read once more up to it, all positions at once.
Either way the state at a position is ``e^{G_r} S + sum over i <= r of e^{G_r - G_i} k_i u_i^T``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refine_kernels.compact import Mailbox
from refine_kernels.delta_rule.inside import EVERY, Chunks, Pass
from refine_kernels.delta_rule.kernel_op import TritonDeltaRule, chunk_of, slots_of
from refine_kernels.records import rows_of


@dataclass(frozen=True, slots=True)
class GivenTrail:
    """The states at positions that were known beforehand."""

    entering: Tensor  # [B * S, H, K, V], those of slots that are used
    u: Tensor  # [B * S, H, C, V]
    slot: Tensor  # [B, S] int64, of each position
    chunks: Chunks
    positions: Tensor
    source: Pass

    def at(self, positions: Tensor) -> Tensor:
        """The states ``[B * S, H, K, V]``.

        Raises:
            ValueError: other positions than those that were given.
        """
        if positions is not self.positions:
            raise ValueError("only the states at the positions given to the pass were kept")
        return self.source.states(*self.rows(), self.chunks)

    def coarse(self) -> tuple[Tensor, int]:
        """There are none.

        Raises:
            ValueError: always.
        """
        raise ValueError("only the states at the positions given to the pass were kept")

    def rows(self) -> tuple[Tensor, Tensor]:
        """What enters each position's chunk, and what the chunk writes."""
        slot = self.slot.flatten()
        return self.entering.index_select(0, slot), self.u.index_select(0, slot)


@dataclass(frozen=True, slots=True)
class CoarseTrail:
    """The states of every ``EVERY``-th chunk, and what the row was made of."""

    states: Tensor  # [B * M, H, K, V] float32
    v: Tensor  # [B, T, H, V]
    beta: Tensor  # [B, T, H]
    source: Pass
    chunk: int

    @torch.no_grad()
    def _read_again(self, positions: Tensor, chunks: Chunks) -> tuple[Tensor, Tensor]:
        """What enters each position's chunk, and what the chunk writes."""
        source, chunk = self.source, self.chunk
        batch, length = source.k.shape[:2]
        piece = chunks.index // EVERY
        row = torch.arange(batch, device=positions.device)[:, None]
        size = min(EVERY * chunk, length)
        token = piece[..., None] * (EVERY * chunk) + torch.arange(size, device=row.device)
        token = (token.clamp(max=length - 1) + row[..., None] * length).flatten(0, 1)
        k, v, beta = (rows_of(x, token) for x in (source.k, self.v, self.beta))
        decay = None if source.log_decay is None else rows_of(source.log_decay, token)
        entering = self.states.index_select(0, (row * _coarse(length, chunk) + piece).flatten())
        local = positions - piece * (EVERY * chunk)
        trail = _read(
            k, k, v, beta, decay, entering, 1.0, source.normalize_qk, chunk,
            positions=local.view(-1, 1),
        )[2]  # fmt: skip
        assert isinstance(trail, GivenTrail)
        return trail.rows()

    def at(self, positions: Tensor) -> Tensor:
        """The states ``[B * S, H, K, V]`` after ``positions [B, S]`` tokens (0 to T)."""
        chunks = Chunks.of(positions, self.source.k.shape[1], self.chunk)
        return self.source.states(*self._read_again(positions, chunks), chunks)

    def coarse(self) -> tuple[Tensor, int]:
        """The states ``[m, B, H, K, V]``, and the tokens between."""
        return self.states.unflatten(0, (len(self.v), -1)).transpose(0, 1), EVERY * self.chunk


def _coarse(length: int, chunk: int) -> int:
    return -(-length // (chunk * EVERY))


def _coarse_slots(batch: int, length: int, chunk: int, device: torch.device) -> Tensor:
    """``[B, N]``: the coarse states, row after row."""
    n = torch.arange(-(-length // chunk), device=device)
    row = torch.arange(batch, device=device)[:, None] * _coarse(length, chunk)
    return torch.where(n % EVERY == 0, row + n // EVERY, -1).to(torch.int32)


def _read(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, initial: Tensor,
    scale: float, normalize_qk: bool, chunk: int, keep_trail: bool = False,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor, CoarseTrail | GivenTrail | None]:  # fmt: skip
    batch, length = k.shape[:2]
    mailbox = Mailbox()

    def run(slot: Tensor | None, slots: int, emit: int) -> tuple[Tensor, Tensor, Pass, Any, Any]:
        settings = (scale, normalize_qk, chunk, slots, emit)
        output, state, handle, entering, u = TritonDeltaRule.apply(
            q, k, v, beta, log_decay, initial, slot, settings, mailbox
        )
        source = Pass.of(k, log_decay, normalize_qk, handle, mailbox)
        return output, state, source, entering, u

    if keep_trail:
        slot = _coarse_slots(batch, length, chunk, k.device)
        output, state, source, entering, _ = run(slot, batch * _coarse(length, chunk), 1)
        return output, state, CoarseTrail(entering, v.detach(), beta.detach(), source, chunk)
    if positions is not None:
        chunks = Chunks.of(positions, length, chunk)
        slot, place = slots_of(chunks.index, -(-length // chunk))
        output, state, source, entering, u = run(slot, positions.numel(), 2)
        return output, state, GivenTrail(entering, u, place, chunks, positions, source)
    output, state, _, _, _ = run(None, 0, 0)
    return output, state, None


def delta_rule_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor,
    scale: float,
    normalize_qk: bool,
    keep_trail: bool,
    chunk_size: int,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor, CoarseTrail | GivenTrail | None]:
    """Outputs ``[B,T,H,V]``, the last state ``[B,H,K,V]`` float32, and a trail.

    With ``positions [B, S]`` and without ``keep_trail`` the trail gives the states there alone.

    Raises:
        ValueError: widths or a chunk size that the kernels do not take.
    """
    chunk = chunk_of(chunk_size, k.shape[-1])
    return _read(
        q, k.to(q.dtype), v.to(q.dtype), beta, log_decay, initial_state, scale, normalize_qk,
        chunk, keep_trail, positions,
    )  # fmt: skip
