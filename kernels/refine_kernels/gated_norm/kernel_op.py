"""RMSNorm with a gate by Triton kernels: buffers, launches, gradients.

One launch forward, two backward; one where the weight is frozen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine_kernels.launching import launch
from refine_kernels.power_of_two import power_of_two

MAX_WIDTH = 8192  # of a row, which one program holds
# Elements that a program takes at once, forward and backward, where rows are narrow; and programs
# that share the rows in the backward pass, each of which leaves a row of sums. Found by compiling
# for sm_80, sm_90 and sm_100, so that registers suffice. Not timed on a GPU.
_FORWARD, _BACKWARD, _PROGRAMS = 4096, 2048, 512


class TritonGatedNorm(torch.autograd.Function):
    """Forward and backward by Triton kernels."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate: Tensor | None, weight: Tensor,
        settings: tuple[float, bool, float, torch.dtype],
    ) -> Tensor:  # fmt: skip
        """Normalise ``x [..., D]``.

        Args:
            ctx: of autograd.
            x: ``[..., D]``.
            gate: of x's shape, or ``[..., 1]``, or None.
            weight: ``[D]``.
            settings: eps, sigmoid (else silu), offset of the weight, type of the result.
        """
        from refine_kernels.gated_norm.kernels import normalize

        eps, sigmoid, offset, dtype = settings
        x = x.contiguous()
        gate = None if gate is None else gate.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        y = torch.empty_like(x, dtype=dtype)
        scale = x.new_empty(rows, dtype=torch.float32)
        block = power_of_two(width)
        at_once = max(1, _FORWARD // block)
        constants = {
            "D": width, "BD": block, "ROWS": at_once, "GATE": _kind(gate), "SIGMOID": sigmoid
        }  # fmt: skip
        tensors = {"x": x, "gate": gate, "weight": weight, "y": y, "scale": scale}
        launch(
            normalize, (-(-rows // at_once),), tensors | {"M": rows, "eps": eps, "offset": offset},
            constants, {"num_warps": _warps(block), "num_stages": 1},
        )  # fmt: skip
        ctx.save_for_backward(x, gate, weight, scale)
        ctx.settings = settings
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, gate and weight."""
        from refine_kernels.column_sums import sum_columns
        from refine_kernels.gated_norm.kernels import normalize_back

        x, gate, weight, scale = ctx.saved_tensors
        _, sigmoid, offset, _ = ctx.settings
        rows, width = scale.shape[0], x.shape[-1]
        block, wanted = power_of_two(width), ctx.needs_input_grad[2]
        at_once = max(1, _BACKWARD // block)
        blocks = -(-rows // at_once)
        steps = -(-blocks // _PROGRAMS)
        programs = -(-blocks // steps)
        d_x = torch.empty_like(x)
        d_gate = None if gate is None else torch.empty_like(gate)
        partial = scale.new_empty(programs, width) if wanted else None
        tensors = {
            "x": x, "gate": gate, "weight": weight, "scale": scale, "d_y": grads[0].contiguous(),
            "d_x": d_x, "d_gate": d_gate, "partial": partial,
        }  # fmt: skip
        constants = {
            "D": width, "BD": block, "ROWS": at_once, "GATE": _kind(gate), "SIGMOID": sigmoid,
            "WEIGHT": wanted,
        }  # fmt: skip
        launch(
            normalize_back, (programs,), tensors | {"M": rows, "STEPS": steps, "offset": offset},
            constants, {"num_warps": _warps(block), "num_stages": 1},
        )  # fmt: skip
        d_weight = None if partial is None else sum_columns(partial, weight.dtype)
        return d_x, d_gate, d_weight, None


def _kind(gate: Tensor | None) -> int:
    """``GATE`` of the kernels. A row of one element has one gate either way."""
    if gate is None:
        return 0
    return 1 if gate.shape[-1] == 1 else 2


def _warps(block: int) -> int:
    return min(16, max(4, block // 512))
