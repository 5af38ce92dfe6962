"""The short causal depthwise convolution before a recurrence, and its state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from refine_kernels.backends import OwnBackend, not_for_kernels, takes_triton
from refine_kernels.compact import Tapped
from refine_kernels.records import check_shapes, rows_of
from refine_kernels.short_conv.blocked import BlockedShortConv
from refine_kernels.short_conv.kernel_op import MAX_TAPS, TritonShortConv


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    tail: Tensor | None = None,
    silu: bool = True,
    backend: OwnBackend = "auto",
) -> Tensor:
    """``silu(bias + sum_j w_j x_{t-(W-1)+j})``, each channel by itself.

    Args:
        x: ``[B, T, D]``.
        weight: ``[D, 1, W]``, the last tap belongs to the token itself.
        bias: ``[D]``.
        tail: ``[B, W-1, D]``, the inputs before the first token; zeros if left out.
        silu: apply the activation.
        backend: ``auto`` takes Triton kernels on CUDA, else torch; see
            :func:`refine_kernels.backends.takes_triton`.

    Returns:
        ``[B, T, D]``.

    Raises:
        ValueError: shapes that do not fit, or a backend that cannot run.
    """
    batch, _, channels = x.shape
    width = weight.shape[-1]
    before = (batch, width - 1, channels)
    check_shapes(weight=(weight, (channels, 1, width)), tail=(tail, before))
    unfit = not_for_kernels(x, weight)
    if width > MAX_TAPS:
        unfit = f"its kernels take {MAX_TAPS} taps at most, not {width}"
    if takes_triton("short_conv", backend, x.device, unfit) and x.numel() > 0:
        earlier = None if tail is None or width == 1 else tail.to(x.dtype)
        return TritonShortConv.apply(x, weight, bias, earlier, silu)
    tail = x.new_zeros(before) if tail is None else tail.to(x.dtype)
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        return BlockedShortConv.apply(x, weight, bias, tail, silu)
    padded = torch.cat([tail, x], 1).transpose(1, 2)
    y = F.conv1d(padded, weight.to(x.dtype), bias, groups=channels).transpose(1, 2)
    return F.silu(y) if silu else y


def conv_tail_at(x: Tensor | Tapped, tail: Tensor | None, positions: Tensor, width: int) -> Tensor:
    """The convolution's state after some tokens: its last ``width - 1`` inputs.

    Args:
        x: inputs ``[B, T, D]``, or what they were tapped with.
        tail: ``[B, width-1, D]`` inputs before the first one; zeros if left out.
        positions: ``[B, S]`` tokens that were read, 0 to T.
        width: taps of the convolution.

    Returns:
        ``[B * S, width - 1, D]``.
    """
    return conv_tails_at((x,), () if tail is None else (tail,), positions, width)[0]


def conv_tails_at(
    inputs: Sequence[Tensor | Tapped], tails: Sequence[Tensor], positions: Tensor, width: int
) -> tuple[Tensor, ...]:
    """Those of convolutions over the same tokens, which have their places in common.

    Args:
        inputs: each as in :func:`conv_tail_at`.
        tails: as many, or none: zeros.
        positions: ``[B, S]``.
        width: taps of all of them.

    Returns:
        Each ``[B * S, width - 1, D]``.
    """
    if not inputs:
        return ()
    tapped = [x if isinstance(x, Tapped) else Tapped(x) for x in inputs]
    (batch, length), device = tapped[0].values.shape[:2], tapped[0].values.device
    row = torch.arange(batch, device=device)[:, None, None]
    index = positions[..., None] + torch.arange(1 - width, 0, device=device)
    inside = (index >= 0)[..., None]
    here = index.clamp(0, length - 1) + row * length
    picked = [x.rows(here) for x in tapped]  # each [B, S, W-1, D]
    if not tails or width == 1:
        return tuple(torch.where(inside, x, 0).flatten(0, 1) for x in picked)
    before = (index + width - 1).clamp(0, width - 2) + row * (width - 1)
    earlier = [rows_of(t.to(x.dtype), before) for t, x in zip(tails, picked, strict=True)]
    return tuple(
        torch.where(inside, x, e).flatten(0, 1) for x, e in zip(picked, earlier, strict=True)
    )
