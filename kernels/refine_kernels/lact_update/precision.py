"""Types of the operands of LaCT's matrix products, and the products.

States, gradients of states and every sum are float32 (float64 for float64 weights), whatever the
operands are: tensor cores multiply bfloat16 exactly and add in float32.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils.flop_counter import bmm_flop, register_flop_formula

Precision = Literal["auto", "float32", "bf16"]


def operand_dtype(precision: Precision, tokens: Tensor, states: torch.dtype) -> torch.dtype:
    """The type in which matrices are multiplied.

    Args:
        precision: ``bf16``; ``float32``, which means the states' type; or ``auto``: bfloat16 on
            CUDA for tokens of 16 bits or under an autocast, else the states' type.
        tokens: of the pass, in the caller's autocast.
        states: type of the fast weights.

    Raises:
        ValueError: no such precision.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"lact_update has no precision {precision!r}; use auto, float32 or bf16")
    if precision == "bf16":
        return torch.bfloat16
    if precision == "float32" or tokens.device.type != "cuda" or states != torch.float32:
        return states
    short = tokens.dtype.itemsize == 2 or torch.is_autocast_enabled("cuda")
    return torch.bfloat16 if short else states


def product(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """``x @ y`` of ``[G, a, b]`` and ``[G, b, c]``, summed in float32 at least, in ``dtype``."""
    if x.dtype.itemsize > 2:
        return torch.bmm(x, y).to(dtype)
    if x.device.type == "cuda" and dtype == x.dtype:
        return torch.bmm(x, y)
    return torch.ops.refine_kernels.bmm_wide(x, y).to(dtype)


def _bmm_wide(x: Tensor, y: Tensor) -> Tensor:
    if x.device.type == "cuda":
        return torch.bmm(x, y, out_dtype=torch.float32)
    return torch.bmm(x.float(), y.float())  # products of 16 bits are exact in it


# A name of its own, because what counts the operations of torch's product with another type of the
# result (FlopCounterMode, fake tensors) does not know its arguments.
_LIBRARY = torch.library.Library("refine_kernels", "DEF")
_LIBRARY.define("bmm_wide(Tensor x, Tensor y) -> Tensor")
_LIBRARY.impl("bmm_wide", _bmm_wide, "CompositeExplicitAutograd")


@torch.library.register_fake("refine_kernels::bmm_wide", lib=_LIBRARY)
def _like(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], y.shape[2], dtype=torch.float32)


register_flop_formula(torch.ops.refine_kernels.bmm_wide)(bmm_flop)
