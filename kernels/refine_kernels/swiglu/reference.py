"""SwiGLU's element-wise part, by its definition."""

from __future__ import annotations

from torch import Tensor


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """``gate / (1 + e^-gate) * up``."""
    return gate / (1 + (-gate).exp()) * up
