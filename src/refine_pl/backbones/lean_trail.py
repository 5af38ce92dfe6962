"""A trail of the delta rule that keeps little: the mixer's inputs, and the state of every piece.

What lies between is read again where it is asked for: the pieces that positions lie in, each once,
all of them together. That needs the mixer's weights, as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from refine_kernels.host import on_host, to_device
from refine_kernels.records import rows_of
from refine_pl.backbones.base import LayerTrail
from refine_pl.backbones.delta_rule_states import DeltaRuleState


class PieceReader(Protocol):
    """A mixer that reads pieces of rows; see ``DeltaRuleCore``."""

    conv_size: int

    def read_piece(
        self,
        x: Tensor,
        lead: int,
        first: Tensor,
        mask: Tensor | None,
        tails: Sequence[Tensor],
        entering: Tensor,
        positions: Tensor,
    ) -> DeltaRuleState:
        """The states after ``positions [U, P]`` tokens of pieces of rows."""


@dataclass(frozen=True, slots=True)
class LeanTrail(LayerTrail):
    """Of a pass without gradients over ``B`` rows of ``T`` tokens."""

    mixer: PieceReader
    x: Tensor  # [B, T, D] that the mixer read, in the type that it multiplies in
    mask: Tensor | None  # [B, T] bool, real tokens
    states: Tensor  # [n, B, H, K, V] entering each piece
    piece: int  # tokens
    tails: tuple[Tensor, ...]  # [B, conv_size - 1, channels] before the first token; or none
    precision: Callable[[], AbstractContextManager[Any]]  # of the pass

    @torch.no_grad()
    def at(self, positions: Tensor) -> DeltaRuleState:
        """The state after ``positions [B, S]`` tokens, rows flattened to ``B * S``.

        The positions are read on the host: once, if all layers are given the same tensor.
        """
        count, device = self.states.shape[0], self.x.device
        host = on_host(positions)
        piece = (host // self.piece).clamp(max=count - 1)
        number = (piece + torch.arange(len(host))[:, None] * count).flatten()
        used, row, counts = number.unique(return_inverse=True, return_counts=True)
        order = row.argsort(stable=True)
        first = (counts.cumsum(0) - counts)[row[order]]
        slot = torch.empty_like(row).scatter(0, order, torch.arange(len(row)) - first)
        inside = torch.zeros(len(used), int(counts.max()), dtype=torch.int64)
        inside[row, slot] = (host - piece * self.piece).flatten()
        with self.precision():
            state = self._read(used, to_device(inside, device))
        return state.select(to_device(row * inside.shape[1] + slot, device))

    def _read(self, used: Tensor, inside: Tensor) -> DeltaRuleState:
        """The states after ``inside [U, P]`` tokens of the pieces ``used [U]`` (on the host)."""
        count, (_, length) = self.states.shape[0], self.x.shape[:2]
        lead = self.mixer.conv_size - 1
        row, piece = (to_device(i, self.x.device) for i in (used // count, used % count))
        offset = torch.arange(-lead, min(self.piece, length), device=row.device)
        token = (piece[:, None] * self.piece + offset).clamp(0, length - 1) + row[:, None] * length
        x = rows_of(self.x, token)
        mask = None if self.mask is None else rows_of(self.mask[..., None], token)[:, lead:, 0]
        tails = [tail.index_select(0, row) for tail in self.tails]
        entering = rows_of(self.states, piece * len(self.x) + row)
        return self.mixer.read_piece(x, lead, piece == 0, mask, tails, entering, inside)
