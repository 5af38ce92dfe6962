"""The short causal depthwise convolution, by its definition.

y_t = silu(bias + sum_j w_j x_{t - (W - 1) + j})
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def short_conv_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor, silu: bool
) -> Tensor:
    """Shapes as in ``interface.short_conv``."""
    width = weight.shape[-1]
    padded = torch.cat([tail, x], 1)
    windows = padded.unfold(1, width, 1)  # [B, T, D, W]
    y = (windows * weight[:, 0]).sum(-1)
    if bias is not None:
        y = y + bias
    return F.silu(y) if silu else y
