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
    batch, length = values.shape[:2]
    row = torch.arange(batch, device=values.device)[:, None, None]
    offset = torch.arange(first, first + count, device=values.device)
    index = (positions.index[..., None] + offset).clamp(0, length - 1) + row * length
    # index_select, because the backward pass of indexing with tensors is slow on a CPU.
    picked = values.flatten(0, 1).index_select(0, index.flatten())
    return picked.view(*index.shape, *values.shape[2:])
