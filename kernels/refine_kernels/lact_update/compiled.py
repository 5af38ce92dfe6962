"""The element-wise work compiled: each function of ``terms.py`` is one pass over memory."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from refine_kernels.backends import CompiledBackend, compiler_missing
from refine_kernels.lact_update.stacked import StackedTerms
from refine_kernels.lact_update.terms import EAGER, Terms

T = TypeVar("T", Terms, StackedTerms)

# Elements of a row's inner activations, T * H * h, from which ``auto`` compiles. That takes some
# seconds once in a process; at this size they are won back within a few hundred layers' passes.
COMPILE_ELEMENTS = 2**20


def choose(
    backend: CompiledBackend, device: torch.device, dtype: torch.dtype, elements: int
) -> Terms:
    """How to do the element-wise work of rows with this many ``elements`` each.

    Args:
        backend: ``compiled``, ``torch`` (uncompiled), or ``auto``: compiled on a CPU for long
            rows in float32, if there is a compiler. On CUDA ``auto`` does not compile.
        device: of the tensors.
        dtype: of the fast weights.
        elements: of a row's inner activations, ``T * H * h``.

    Raises:
        ValueError: compilation was asked for by name and cannot be.
    """
    if backend == "torch":
        return EAGER
    on_cpu = device.type == "cpu"
    if backend == "auto":
        worthwhile = on_cpu and dtype == torch.float32 and elements >= COMPILE_ELEMENTS
        return _compile(EAGER, False) if worthwhile and compiler_missing() is None else EAGER
    return compiled(EAGER, device)


def compiled(functions: T, device: torch.device) -> T:
    """The ``functions`` compiled for the device, as was asked for by name.

    Raises:
        ValueError: they cannot be.
    """
    missing = compiler_missing() if device.type == "cpu" else None
    if missing is not None:
        raise ValueError(f"backend 'compiled' cannot run: {missing}; use 'auto' or 'torch'")
    return _compile(functions, True)


@functools.cache
def _compile(functions: T, required: bool) -> T:
    return type(functions)(*[_Compiled(function, required) for function in functions])


class _Compiled:
    """A function of rows ``[n, ...]``, compiled at its first call for any ``n``."""

    def __init__(self, function: Callable[..., Any], required: bool) -> None:
        self.function = function
        self.required = required
        self.run: Callable[..., Any] | None = None  # None: not called yet

    def __call__(self, *arguments: Tensor | bool) -> Any:
        for x in arguments:
            if isinstance(x, Tensor):
                torch._dynamo.maybe_mark_dynamic(x, 0)
        if self.run is None:
            return self._first(*arguments)
        return self.run(*arguments)

    def _first(self, *arguments: Tensor | bool) -> Any:
        compiled = torch.compile(self.function)
        try:
            result = compiled(*arguments)
        except Exception as error:  # whatever a compiler may say
            if self.required:
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(
                f"lact_update: its element-wise work could not be compiled ({reason}). It runs "
                "uncompiled, which is slower; backend 'torch' does so without a try.",
                stacklevel=2,
            )
            self.run = self.function
            return self.function(*arguments)
        self.run = compiled
        return result
