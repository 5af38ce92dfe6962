"""What a LaCT layer carries: fast weights, the unfinished chunk, and the window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from refine_kernels.lact_update import FastTrail, SharedFastState
from refine_kernels.window_attention import SharedWindow, WindowTrail
from refine_pl.backbones.base import LayerState, LayerTrail


@dataclass(frozen=True, slots=True)
class LaCTState(LayerState):
    """The state of one layer for ``R`` rows."""

    fast: SharedFastState
    seen: SharedWindow
    num_tokens: Tensor  # [R] int64, for the rotations of the next ones
    window: int

    def select(self, rows: Tensor) -> Self:
        """The rows ``rows [M]`` int64."""
        return type(self)(
            self.fast.select(rows), self.seen.select(rows), self.num_tokens[rows], self.window
        )

    def fork(self, n: int) -> Self:
        """Every row ``n`` times, sharing weights, chunk and window of its prefix."""
        return type(self)(
            self.fast.fork(n),
            self.seen.fork(n, self.window),
            self.num_tokens.repeat_interleave(n),
            self.window,
        )

    def compact(self) -> Self:
        """The same, holding no more than its rows need."""
        return type(self)(
            self.fast.fold(), self.seen.fold(self.window), self.num_tokens, self.window
        )


@dataclass(frozen=True, slots=True)
class LaCTTrail(LayerTrail):
    """What one layer keeps of a pass."""

    fast: FastTrail
    seen: WindowTrail
    before: Tensor  # [B] int64, tokens of each row before the pass

    def at(self, positions: Tensor) -> LaCTState:
        """The state after ``positions [B, S]`` tokens, rows flattened to ``B * S``."""
        num_tokens = (self.before[:, None] + positions).flatten()
        window = self.seen.window
        return LaCTState(self.fast.at(positions), self.seen.at(positions), num_tokens, window)


def no_tokens(batch: int, device: torch.device) -> Tensor:
    """Zero tokens for each row, ``[B]`` int64."""
    return torch.zeros(batch, dtype=torch.int64, device=device)
