"""The short convolution by Triton kernels: buffers, launches, gradients.

One launch forward, two backward; one where its parameters are frozen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine_kernels.launching import launch
from refine_kernels.power_of_two import power_of_two

MAX_TAPS = 4  # each of them is compiled apart
# Tokens and channels that a program takes at most, and warps: found by compiling for sm_80, sm_90
# and sm_100, so that registers suffice. Not timed on a GPU.
TOKENS, CHANNELS = 32, 64
OPTIONS = {"num_warps": 4, "num_stages": 1}


class TritonShortConv(torch.autograd.Function):
    """Forward and backward; the value before the activation is computed again in the backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None, silu: bool
    ) -> Tensor:
        """``y [B, T, D]`` in x's type."""
        from refine_kernels.short_conv.kernels import convolve

        x, weight = x.contiguous(), weight.contiguous()
        tail = None if tail is None else tail.contiguous()
        y = torch.empty_like(x)
        grid, numbers, constants = _sizes(x, weight, bias, tail, x.shape[1], silu)
        tensors = {"x": x, "tail": tail, "weight": weight, "bias": bias, "y": y}
        launch(convolve, grid, tensors | numbers, constants, OPTIONS)
        ctx.save_for_backward(x, weight, bias, tail)
        ctx.silu = silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias and tail."""
        from refine_kernels.column_sums import sum_columns
        from refine_kernels.short_conv.kernels import convolve_back

        x, weight, bias, tail = ctx.saved_tensors
        channels, _, width = weight.shape
        wanted = any(ctx.needs_input_grad[1:3])
        length = x.shape[1] + width - 1  # inputs of a row, its tail included
        grid, numbers, constants = _sizes(x, weight, bias, tail, length, ctx.silu)
        d_x = torch.empty_like(x)
        d_tail = None if tail is None else torch.empty_like(tail)
        partial = None
        if wanted:
            sums = channels * (width + (bias is not None))
            partial = x.new_empty(grid[0], sums, dtype=torch.float32)
        tensors = {
            "x": x, "tail": tail, "weight": weight, "bias": bias, "d_y": grads[0].contiguous(),
            "d_x": d_x, "d_tail": d_tail, "partial": partial,
        }  # fmt: skip
        launch(convolve_back, grid, tensors | numbers, constants | {"WEIGHT": wanted}, OPTIONS)
        d_weight = d_bias = None
        if partial is not None:
            total = sum_columns(partial, weight.dtype)
            d_weight = total[: weight.numel()].view_as(weight)
            d_bias = None if bias is None else total[weight.numel() :].to(bias.dtype)
        return d_x, d_weight, d_bias, d_tail, None


def _sizes(
    x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None, length: int, silu: bool
) -> tuple[tuple[int, ...], dict[str, int], dict[str, Any]]:
    """Grid, sizes and constants of a launch over rows of ``length``."""
    (batch, _, channels), width = x.shape, weight.shape[-1]
    tokens, block = min(TOKENS, power_of_two(length, 4)), min(CHANNELS, power_of_two(channels))
    programs = -(-length // tokens)
    constants = {
        "D": channels, "W": width, "BT": tokens, "BD": block, "TAIL": tail is not None,
        "BIAS": bias is not None, "SILU": silu,
    }  # fmt: skip
    grid = (batch * programs, -(-channels // block))
    return grid, {"T": x.shape[1], "N": programs}, constants
