"""SwiGLU's element-wise part by Triton kernels: one launch forward, one backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine_kernels.launching import launch

_BLOCK = 1024  # elements of a program
_OPTIONS = {"num_warps": 4, "num_stages": 1}


def multiply_silu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, without gradients. Both must be contiguous."""
    from refine_kernels.swiglu.kernels import multiply

    y, count = torch.empty_like(gate), gate.numel()
    arguments = {"gate": gate, "up": up, "y": y, "COUNT": count}
    launch(multiply, (-(-count // _BLOCK),), arguments, {"BLOCK": _BLOCK}, _OPTIONS)
    return y


def multiply_silu_backward(
    gate: Tensor, up: Tensor, d_y: Tensor, again: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of gate and up, and ``silu(gate) * up`` ``again`` if that is wanted."""
    from refine_kernels.swiglu.kernels import multiply_back

    d_gate, d_up, count = torch.empty_like(gate), torch.empty_like(up), gate.numel()
    y = torch.empty_like(gate) if again else None
    arguments = {
        "gate": gate, "up": up, "d_y": d_y, "d_gate": d_gate, "d_up": d_up, "again": y,
        "COUNT": count,
    }  # fmt: skip
    launch(multiply_back, (-(-count // _BLOCK),), arguments, {"BLOCK": _BLOCK}, _OPTIONS)
    return d_gate, d_up, y


class TritonSwiGLU(torch.autograd.Function):
    """Forward and backward by Triton kernels; kept are gate and up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """``silu(gate) * up``, of any one shape."""
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return multiply_silu(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of gate and up."""
        gate, up = ctx.saved_tensors
        return multiply_silu_backward(gate, up, grads[0].contiguous(), False)[:2]
