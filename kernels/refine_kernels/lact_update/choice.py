"""Which implementation of the loop over chunks runs."""

from __future__ import annotations

from typing import get_args

import torch

from refine_kernels.backends import CompiledBackend, takes_triton
from refine_kernels.lact_update import compiled, kernel_terms
from refine_kernels.lact_update.stacked import BY_TORCH, StackedTerms
from refine_kernels.lact_update.terms import Terms

BY_TRITON = StackedTerms(
    kernel_terms.hidden,
    kernel_terms.hidden_backward,
    kernel_terms.written,
    kernel_terms.written_backward,
)


def choose_terms(
    backend: CompiledBackend,
    device: torch.device,
    states: torch.dtype,
    operands: torch.dtype,
    elements: int,
    inner: int,
) -> Terms | StackedTerms:
    """How to do the element-wise work, which also says how to multiply.

    In blocks (:class:`Terms`) on a CPU where operands are of the states' type; stacked on CUDA, for
    narrower operands, and where the Triton kernels are asked for by name.

    Args:
        backend: ``torch``; ``compiled``; ``triton``; or ``auto``: on CUDA Triton kernels wherever
            they can run, on a CPU as :func:`compiled.choose` says.
        device: of the tensors.
        states: type of the fast weights.
        operands: of the products.
        elements: of a row's inner activations, ``T * H * h``.
        inner: width ``h``.

    Raises:
        ValueError: no such backend, or one asked for by name that cannot run.
    """
    if backend not in get_args(CompiledBackend):
        allowed = "auto, torch, compiled or triton"
        raise ValueError(f"lact_update has no backend {backend!r}; use {allowed}")
    if operands == states and device.type != "cuda" and backend != "triton":
        return compiled.choose(backend, device, states, elements)
    if backend == "compiled":
        return compiled.compiled(BY_TORCH, device)
    unfit = None
    if torch.float64 in (states, operands):
        unfit = "its kernels compute in float32, not in float64"
    elif inner > kernel_terms.MAX_INNER:
        unfit = f"its kernels take an inner width of {kernel_terms.MAX_INNER:,}, not {inner:,}"
    return BY_TRITON if takes_triton("lact_update", backend, device, unfit) else BY_TORCH
