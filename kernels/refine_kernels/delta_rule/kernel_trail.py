"""Whole rows and states at positions by the Triton kernels.

Positions that are known beforehand: the recurrence stores, in one masked store, the state that
enters each of their chunks, and ``u`` there. Positions that are not: it stores the state of every
``EVERY``-th chunk, and a position's piece is read once more up to it, all positions at once.
Either way the state at a position is ``e^{G_r} S + sum over i <= r of e^{G_r - G_i} k_i u_i^T``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from refine_kernels.delta_rule.kernel_op import TritonDeltaRule, chunk_of
from refine_kernels.delta_rule.reference import l2_normalize
from refine_kernels.records import rows_of

EVERY = 8  # chunks: fewer need more memory, more are longer to read again


@dataclass(frozen=True, slots=True)
class _Chunks:
    """Positions as chunks and tokens of them, all ``[B, S]``."""

    index: Tensor  # the chunk, the last one for what follows it
    used: Tensor  # its tokens before the position, 0 to C

    @classmethod
    def of(cls, positions: Tensor, length: int, chunk: int) -> _Chunks:
        index = (positions // chunk).clamp(max=(length - 1) // chunk)
        return cls(index, positions - index * chunk)


def states_inside(
    entering: Tensor,
    u: Tensor,
    keys: Tensor,
    log_decay: Tensor | None,
    used: Tensor,
    normalize_qk: bool,
) -> Tensor:
    """The states after ``used [R]`` tokens of ``R`` chunks, ``[R, H, K, V]`` float32.

    Args:
        entering: each chunk's ``[R, H, K, V]``.
        u: what its tokens write, ``[R, H, C, V]``.
        keys: ``[R, C, H, K]``, not normalised.
        log_decay: ``[R, C, H]`` or None.
        used: tokens of the chunk that count, 0 to C.
        normalize_qk: divide the keys by their norms.
    """
    keys = keys.to(entering.dtype)
    if normalize_qk:
        keys = l2_normalize(keys)
    inside = torch.arange(keys.shape[1], device=used.device) < used[:, None]
    weight = inside.to(entering.dtype)[..., None]  # [R, C, 1]
    if log_decay is not None:
        total = (log_decay.to(entering.dtype) * weight).cumsum(1)
        last = total[:, -1:]
        weight = weight * (last - total).exp()
        entering = entering * last.squeeze(1).exp()[..., None, None]
    # What comes after the position may hold anything.
    u = torch.where(inside[:, None, :, None], u, 0)
    return entering + (keys * weight[..., None]).permute(0, 2, 3, 1) @ u


@dataclass(frozen=True, slots=True)
class GivenTrail:
    """The states at positions that were known beforehand."""

    entering: Tensor  # [B * S, H, K, V], those of slots that are used
    u: Tensor  # [B * S, H, C, V]
    slot: Tensor  # [B, S] int64, of each position
    chunks: _Chunks
    positions: Tensor
    k: Tensor
    log_decay: Tensor | None
    normalize_qk: bool

    def at(self, positions: Tensor) -> Tensor:
        """The states ``[B * S, H, K, V]``.

        Raises:
            ValueError: other positions than those that were given.
        """
        if positions is not self.positions:
            raise ValueError("only the states at the positions given to the pass were kept")
        chunk, length = self.u.shape[2], self.k.shape[1]
        row = torch.arange(len(positions), device=positions.device)[:, None, None]
        token = self.chunks.index[..., None] * chunk + torch.arange(chunk, device=row.device)
        token = (token.clamp(max=length - 1) + row * length).flatten(0, 1)
        slot = self.slot.flatten()
        return states_inside(
            self.entering.index_select(0, slot),
            self.u.index_select(0, slot),
            rows_of(self.k, token),
            None if self.log_decay is None else rows_of(self.log_decay, token),
            self.chunks.used.flatten(),
            self.normalize_qk,
        )


@dataclass(frozen=True, slots=True)
class CoarseTrail:
    """The states of every ``EVERY``-th chunk, and what the row was made of."""

    states: Tensor  # [B * M, H, K, V] float32
    k: Tensor  # [B, T, H, K]
    v: Tensor  # [B, T, H, V]
    beta: Tensor  # [B, T, H]
    log_decay: Tensor | None  # [B, T, H]
    normalize_qk: bool
    chunk: int

    def at(self, positions: Tensor) -> Tensor:
        """The states ``[B * S, H, K, V]`` after ``positions [B, S]`` tokens (0 to T)."""
        (batch, length), chunk = self.k.shape[:2], self.chunk
        chunks = _Chunks.of(positions, length, chunk)
        piece = chunks.index // EVERY
        row = torch.arange(batch, device=positions.device)[:, None]
        size = min(EVERY * chunk, length)
        token = piece[..., None] * (EVERY * chunk) + torch.arange(size, device=row.device)
        token = (token.clamp(max=length - 1) + row[..., None] * length).flatten(0, 1)
        k, v, beta = (rows_of(x, token) for x in (self.k, self.v, self.beta))
        decay = None if self.log_decay is None else rows_of(self.log_decay, token)
        entering = self.states.index_select(0, (row * _coarse(length, chunk) + piece).flatten())
        local = positions - piece * (EVERY * chunk)
        trail = _read(
            k, k, v, beta, decay, entering, 1.0, self.normalize_qk, chunk,
            positions=local.view(-1, 1),
        )[2]  # fmt: skip
        assert isinstance(trail, GivenTrail)
        return trail.at(trail.positions)


def _coarse(length: int, chunk: int) -> int:
    return -(-length // (chunk * EVERY))


def _coarse_slots(batch: int, length: int, chunk: int, device: torch.device) -> Tensor:
    """``[B, N]``: the coarse states, row after row."""
    n = torch.arange(-(-length // chunk), device=device)
    row = torch.arange(batch, device=device)[:, None] * _coarse(length, chunk)
    return torch.where(n % EVERY == 0, row + n // EVERY, -1).to(torch.int32)


def _given_slots(chunks: _Chunks, num_chunks: int) -> tuple[Tensor, Tensor]:
    """``[B, N]`` int32, and the slot of each position ``[B, S]``: one for positions of a chunk."""
    batch, count = chunks.index.shape
    device = chunks.index.device
    named = torch.zeros(batch, num_chunks, dtype=torch.int64, device=device)
    named = named.scatter(1, chunks.index, 1)
    row = torch.arange(batch, device=device)[:, None] * count
    slot = torch.where(named > 0, named.cumsum(1) - 1 + row, -1)
    return slot.to(torch.int32), slot.gather(1, chunks.index)


def _read(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, initial: Tensor,
    scale: float, normalize_qk: bool, chunk: int, keep_trail: bool = False,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor, CoarseTrail | GivenTrail | None]:  # fmt: skip
    batch, length = k.shape[:2]
    inputs = (q, k, v, beta, log_decay, initial)
    if positions is not None and not keep_trail:
        chunks = _Chunks.of(positions, length, chunk)
        slot, place = _given_slots(chunks, -(-length // chunk))
        settings = (scale, normalize_qk, chunk, positions.numel(), 2)
        output, state, entering, u = TritonDeltaRule.apply(*inputs, slot, settings)
        given = GivenTrail(
            entering, u, place, chunks, positions, k, log_decay, normalize_qk
        )  # fmt: skip
        return output, state, given
    if not keep_trail:
        settings = (scale, normalize_qk, chunk, 0, 0)
        output, state, _, _ = TritonDeltaRule.apply(*inputs, None, settings)
        return output, state, None
    slot = _coarse_slots(batch, length, chunk, k.device)
    settings = (scale, normalize_qk, chunk, batch * _coarse(length, chunk), 1)
    output, state, entering, _ = TritonDeltaRule.apply(*inputs, slot, settings)
    return output, state, CoarseTrail(entering, k, v, beta, log_decay, normalize_qk, chunk)


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
