"""Picking what lies at and around positions."""

from __future__ import annotations

import torch
from torch import Tensor

from refine_pl.records import Positions


def at_offsets(values: Tensor, positions: Positions, first: int, count: int) -> Tensor:
    """``values [B, T, ...]`` at ``position + first ... + first + count - 1``.

    Returns:
        ``[B, S, count, ...]``; what lies outside the row is replaced by its nearest entry, which
        only positions that are not valid meet.
    """
    row = torch.arange(values.shape[0], device=values.device)[:, None, None]
    offset = torch.arange(first, first + count, device=values.device)
    index = positions.index[..., None] + offset
    return values[row, index.clamp(0, values.shape[1] - 1)]
