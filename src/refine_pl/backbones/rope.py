"""Rotary positions: pairs of channels turn by an angle that grows with the token's index.

(x_i, x_{i + d/2}) turns by  t theta^{-2i/d}
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rope:
    """How a layer turns its heads."""

    width: int  # channels of a head that turn, an even number
    theta: float
    factor: float = 1.0  # that distances are divided by

    def rotations(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """``[2, ..., width / 2]`` of tokens ``index [...]``, as :func:`rotations`."""
        scaled = index if self.factor == 1 else index.to(dtype) / self.factor
        return rotations(scaled, self.width, self.theta, dtype)


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
    """``x [..., H, d]`` turned by ``table [2, ..., w / 2]``; the same for all heads.

    Of a head's channels the first ``w`` turn, and the others stay.
    """
    cos, sin = table[0][..., None, :], table[1][..., None, :]
    half = table.shape[-1]
    first, second = x[..., :half].to(table.dtype), x[..., half : 2 * half].to(table.dtype)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
    return turned if 2 * half == x.shape[-1] else torch.cat([turned, x[..., 2 * half :]], -1)
