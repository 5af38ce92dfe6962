"""The short causal depthwise convolution in front of a recurrence, and its state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from refine_kernels.short_conv.blocked import BlockedShortConv


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    tail: Tensor | None = None,
    silu: bool = True,
) -> Tensor:
    """``silu(bias + sum_j w_j x_{t-(W-1)+j})``, each channel by itself.

    Args:
        x: ``[B, T, D]``.
        weight: ``[D, 1, W]``, the last tap belongs to the token itself.
        bias: ``[D]``.
        tail: ``[B, W-1, D]``, the inputs before the first token; zeros if left out.
        silu: apply the activation.

    Returns:
        ``[B, T, D]``.

    Raises:
        ValueError: shapes that do not fit.
    """
    batch, _, channels = x.shape
    width = weight.shape[-1]
    if weight.shape != (channels, 1, width):
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected ({channels}, 1, W)")
    if tail is None:
        tail = x.new_zeros(batch, width - 1, channels)
    elif tail.shape != (batch, width - 1, channels):
        expected = (batch, width - 1, channels)
        raise ValueError(f"tail has shape {tuple(tail.shape)}, expected {expected}")
    tail = tail.to(x.dtype)
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        return BlockedShortConv.apply(x, weight, bias, tail, silu)
    padded = torch.cat([tail, x], 1).transpose(1, 2)
    y = F.conv1d(padded, weight.to(x.dtype), bias, groups=channels).transpose(1, 2)
    return F.silu(y) if silu else y


def conv_tail_at(x: Tensor, tail: Tensor | None, positions: Tensor, width: int) -> Tensor:
    """The convolution's state after some tokens: its last ``width - 1`` inputs.

    Args:
        x: inputs ``[B, T, D]``.
        tail: ``[B, width-1, D]`` inputs before the first one; zeros if left out.
        positions: ``[B, S]`` tokens that were read, 0 to T.
        width: taps of the convolution.

    Returns:
        ``[B * S, width - 1, D]``.
    """
    batch, length, channels = x.shape
    row = torch.arange(batch, device=x.device)[:, None, None]
    index = positions[..., None] - (width - 1) + torch.arange(width - 1, device=x.device)
    inside = index >= 0

    def rows(source: Tensor, at: Tensor) -> Tensor:  # [B, S, W-1, D]
        flat = (at + row * source.shape[1]).flatten()
        return source.flatten(0, 1).index_select(0, flat).view(*index.shape, channels)

    picked = rows(x, index.clamp(0, length - 1))
    if tail is None or width == 1:
        earlier = torch.zeros_like(picked)
    else:
        earlier = rows(tail.to(x.dtype), (index + width - 1).clamp(0, width - 2))
    return torch.where(inside[..., None], picked, earlier).flatten(0, 1)
