"""RMSNorm, alone or with a gate: checks, and the choice of an implementation."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from refine_kernels.backends import OwnBackend, not_for_kernels, takes_triton
from refine_kernels.gated_norm.kernel_op import MAX_WIDTH, TritonGatedNorm
from refine_kernels.records import check_shapes

GateActivation = Literal["silu", "sigmoid"]


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    for_products: bool = False,
    backend: OwnBackend = "auto",
) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * (weight + offset)`` over the last dimension.

    Args:
        x: ``[..., D]``.
        weight: ``[D]``.
        eps: added to the mean of the squares.
        offset: added to the weight: 1 for models that keep it less 1.
        for_products: the result is read by linear layers alone. Autocast would have them round it;
            the Triton kernels then write autocast's type at once.
        backend: ``auto`` takes Triton kernels on CUDA, else torch; see
            :func:`refine_kernels.backends.takes_triton`.

    Returns:
        ``[..., D]`` in x's type.

    Raises:
        ValueError: shapes that do not fit, or a backend that cannot run.
    """
    if _by_kernels("rms_norm", x, weight, backend):
        settings = (eps, True, offset, _result(x, for_products))
        return TritonGatedNorm.apply(x, None, weight, settings)
    return _norm(x, weight, eps, offset)


def gated_norm(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    eps: float,
    *,
    activation: GateActivation = "silu",
    offset: float = 0.0,
    for_products: bool = False,
    backend: OwnBackend = "auto",
) -> Tensor:
    """``rms_norm(x) * activation(gate)``.

    Args:
        x: ``[..., D]``.
        gate: of x's shape, or ``[..., 1]``: one for each row.
        weight: ``[D]``.
        eps: added to the mean of the squares.
        activation: ``silu`` or ``sigmoid``.
        offset: added to the weight.
        for_products: as in :func:`rms_norm`.
        backend: as in :func:`rms_norm`.

    Returns:
        ``[..., D]`` in x's type (in torch, in the one that a product with the gate has).

    Raises:
        ValueError: shapes that do not fit, another activation, or a backend that cannot run.
    """
    if activation not in ("silu", "sigmoid"):
        raise ValueError(f"gated_norm has no activation {activation!r}; use silu or sigmoid")
    last = 1 if gate.shape[-1:] == (1,) else x.shape[-1]
    check_shapes(gate=(gate, (*x.shape[:-1], last)))
    if _by_kernels("gated_norm", x, weight, backend):
        settings = (eps, activation == "sigmoid", offset, _result(x, for_products))
        return TritonGatedNorm.apply(x, gate, weight, settings)
    opened = torch.sigmoid(gate) if activation == "sigmoid" else F.silu(gate)
    return _norm(x, weight, eps, offset) * opened


def _norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """By torch. A weight with an offset is never rounded to 16 bits: 1 would take its digits."""
    if offset == 0:
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(wide), weight.shape, weight.to(wide) + offset, eps).to(x.dtype)


def _by_kernels(op: str, x: Tensor, weight: Tensor, backend: OwnBackend) -> bool:
    check_shapes(weight=(weight, (x.shape[-1],)))
    unfit = not_for_kernels(x, weight)
    if x.shape[-1] > MAX_WIDTH:
        unfit = f"its kernels take rows of {MAX_WIDTH:,} elements, not {x.shape[-1]:,}"
    return takes_triton(op, backend, x.device, unfit) and x.numel() > 0


def _result(x: Tensor, for_products: bool) -> torch.dtype:
    kind = x.device.type
    if for_products and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype
