"""Three short convolutions over the same tokens, those of q, k and v, in the launches of one.

A row of few tokens is over before the next launch has started: what decoding costs is launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine_kernels.backends import OwnBackend, not_for_kernels, takes_triton
from refine_kernels.launching import launch
from refine_kernels.power_of_two import power_of_two
from refine_kernels.records import check_shapes
from refine_kernels.short_conv.interface import short_conv
from refine_kernels.short_conv.kernel_op import CHANNELS, MAX_TAPS, OPTIONS, TOKENS


def three_short_convs(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    tails: Sequence[Tensor] = (),
    silu: Sequence[bool] = (True, True, True),
    *,
    backend: OwnBackend = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Each as :func:`short_conv` does it, without biases.

    Args:
        inputs: three of ``[B, T, D]``, with channels of their own.
        weights: of each, ``[D, 1, W]``.
        tails: of each, ``[B, W-1, D]``; none: zeros.
        silu: of each, apply the activation.
        backend: as in :func:`short_conv`.

    Raises:
        ValueError: shapes that do not fit, or a backend that cannot run.
    """
    width = weights[0].shape[-1]
    batch, length, _ = inputs[0].shape
    for n, (x, weight) in enumerate(zip(inputs, weights, strict=True)):
        channels = x.shape[2]
        expected = {
            "input": (x, (batch, length, channels)),
            "weight": (weight, (channels, 1, width)),
        }
        expected |= {"tail": (tails[n], (batch, width - 1, channels))} if tails else {}
        check_shapes(**{f"{name} {n}": both for name, both in expected.items()})
    unfit = not_for_kernels(*inputs, *weights)
    if width > MAX_TAPS:
        unfit = f"its kernels take {MAX_TAPS} taps at most, not {width}"
    alike = len(set(silu)) == 1
    if not takes_triton("short_conv", backend, inputs[0].device, unfit) or not (
        alike and batch * length
    ):
        each = zip(inputs, weights, tails or (None, None, None), silu, strict=True)
        q, k, v = (
            short_conv(x, weight, tail=tail, silu=on, backend=backend)
            for x, weight, tail, on in each
        )
        return q, k, v
    before = (
        [t.to(x.dtype) for t, x in zip(tails, inputs, strict=True)] if tails and width > 1 else []
    )
    made: tuple[Tensor, Tensor, Tensor] = TritonThreeConvs.apply(
        silu[0], bool(before), *inputs, *weights, *before
    )
    return made


class TritonThreeConvs(torch.autograd.Function):
    """One launch forward, two backward; one where all weights are frozen."""

    @staticmethod
    def forward(ctx: Any, silu: bool, tailed: bool, *given: Tensor) -> tuple[Tensor, ...]:
        """``y`` of each; ``given``: three inputs, three weights, and three tails if ``tailed``."""
        from refine_kernels.short_conv.kernels_three import convolve_three

        tensors = tuple(x.contiguous() for x in given)
        ctx.save_for_backward(*tensors)
        ctx.silu, ctx.tailed = silu, tailed
        inputs = tensors[:3]
        made = tuple(map(torch.empty_like, inputs))
        grid, numbers, constants = _sizes(tensors, silu, tailed, inputs[0].shape[1])
        arguments = _named(tensors, tailed) | {f"y{n}": y for n, y in enumerate(made)}
        launch(convolve_three, grid, arguments | numbers, constants, OPTIONS)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all that was given."""
        from refine_kernels.column_sums import sum_columns
        from refine_kernels.short_conv.kernels_three import convolve_three_back

        tensors, tailed = ctx.saved_tensors, ctx.tailed
        inputs, weights = tensors[:3], tensors[3:6]
        width = weights[0].shape[-1]
        length = inputs[0].shape[1] + width - 1  # inputs of a row, its tail included
        grid, numbers, constants = _sizes(tensors, ctx.silu, tailed, length)
        wanted = any(ctx.needs_input_grad[5:8])
        partial = None
        if wanted:
            taps = sum(weight.numel() for weight in weights)
            partial = inputs[0].new_empty(grid[0], taps, dtype=torch.float32)
        d_inputs, d_tails = (tuple(map(torch.empty_like, part)) for part in (inputs, tensors[6:]))
        arguments = _named(tensors, tailed) | {"partial": partial}
        for n in range(3):
            arguments |= {f"d_y{n}": grads[n].contiguous(), f"d_x{n}": d_inputs[n]}
            arguments[f"d_tail{n}"] = d_tails[n] if tailed else None
        constants["WEIGHT"] = wanted
        launch(convolve_three_back, grid, arguments | numbers, constants, OPTIONS)
        d_weights: tuple[Tensor | None, ...] = (None, None, None)
        if partial is not None:
            total = sum_columns(partial, weights[0].dtype)
            parts = total.split([weight.numel() for weight in weights])
            d_weights = tuple(d.view_as(w) for d, w in zip(parts, weights, strict=True))
        return None, None, *d_inputs, *d_weights, *d_tails


def _named(tensors: Sequence[Tensor], tailed: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for n in range(3):
        found |= {f"x{n}": tensors[n], f"weight{n}": tensors[3 + n]}
        found[f"tail{n}"] = tensors[6 + n] if tailed else None
    return found


def _sizes(
    tensors: Sequence[Tensor], silu: bool, tailed: bool, length: int
) -> tuple[tuple[int, ...], dict[str, int], dict[str, Any]]:
    """Grid, sizes and constants of a launch over rows of ``length``."""
    batch, own, _ = tensors[0].shape
    channels, width = [x.shape[2] for x in tensors[:3]], tensors[3].shape[-1]
    tokens, block = min(TOKENS, power_of_two(length, 4)), min(CHANNELS, power_of_two(max(channels)))
    programs = -(-length // tokens)
    constants: dict[str, Any] = {f"D{n}": size for n, size in enumerate(channels)}
    constants |= {"W": width, "BT": tokens, "BD": block, "TAIL": tailed}
    constants |= {"SILU": silu, "EQUAL": len(set(channels)) == 1, "ALIGN": gcd(16, *channels)}
    grid = (batch * programs, sum(-(-size // block) for size in channels))
    return grid, {"T": own, "N": programs}, constants
