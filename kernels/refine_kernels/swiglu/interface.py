"""SwiGLU's element-wise part: checks, and the choice of an implementation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from refine_kernels.backends import OwnBackend, not_for_kernels, takes_triton
from refine_kernels.records import check_shapes
from refine_kernels.swiglu.kernel_op import TritonSwiGLU


def swiglu(gate: Tensor, up: Tensor, *, backend: OwnBackend = "auto") -> Tensor:
    """``silu(gate) * up``.

    Args:
        gate: of any shape.
        up: of the same shape and type.
        backend: ``auto`` takes Triton kernels on CUDA, else torch; see
            :func:`refine_kernels.backends.takes_triton`.

    Raises:
        ValueError: shapes that do not fit, or a backend that cannot run.
    """
    check_shapes(up=(up, tuple(gate.shape)))
    unfit = not_for_kernels(gate, up)
    if gate.dtype != up.dtype:
        unfit = f"its kernels take one type, not {gate.dtype} and {up.dtype}"
    if takes_triton("swiglu", backend, gate.device, unfit) and gate.numel() > 0:
        return TritonSwiGLU.apply(gate, up)
    return F.silu(gate) * up
