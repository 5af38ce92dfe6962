"""Rotary positions: pairs of channels turn by an angle that grows with the token's index.

(x_i, x_{i + d/2}) turns by  t theta^{-2i/d}
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotations(index: Tensor, width: int, theta: float, dtype: torch.dtype) -> Tensor:
    """Cosines and sines ``[2, ..., width / 2]`` of tokens ``index [...]``.

    Args:
        index: number of the token in its row, from 0.
        width: of a head.
        theta: base of the angles.
        dtype: at least float32; angles of distant tokens have many digits.
    """
    exponent = torch.arange(0, width, 2, device=index.device, dtype=dtype) / width
    angle = index[..., None].to(dtype) * theta**-exponent
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """``x [..., H, d]`` turned by ``table [2, ..., d / 2]``; the same for all heads."""
    cos, sin = table[0][..., None, :], table[1][..., None, :]
    first, second = x.to(table.dtype).chunk(2, -1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.to(x.dtype)
