"""RMSNorm with a gate, by its definition.

y = x / sqrt(mean(x^2) + eps) * (weight + offset) * act(gate)
"""

from __future__ import annotations

import torch
from torch import Tensor


def gated_norm_reference(
    x: Tensor, gate: Tensor | None, weight: Tensor, eps: float, sigmoid: bool, offset: float
) -> Tensor:
    """Shapes as in ``interface.gated_norm``; no gate is a factor of 1."""
    y = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * (weight + offset)
    if gate is None:
        return y
    return y * torch.sigmoid(gate) * (1 if sigmoid else gate)
