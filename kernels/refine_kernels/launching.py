"""Where every Triton kernel of this package is started, and where its launches can be recorded.

A recording starts no kernel. It is made with tensors of the device ``meta``, and says which kernels
a call would start, with which types and constants: what is compiled ahead of time is what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

_recording: list[Any] | None = None
_note: Callable[[Launch], Any] = lambda launch: launch  # noqa: E731
_recorded_for = (9, 0)


@dataclass(frozen=True)
class Launch:
    """One start of a kernel."""

    kernel: Any  # what triton.jit returned
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # tensors and numbers, by name
    constants: dict[str, Any]
    options: dict[str, int]  # num_warps and num_stages


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: dict[str, Any],
    constants: dict[str, Any],
    options: dict[str, int],
) -> None:
    """Start ``kernel`` on ``grid``, or note it down.

    Args:
        kernel: what ``triton.jit`` returned.
        grid: programs along each axis.
        arguments: tensors, integers, floats and None, by the kernel's names.
        constants: the kernel's ``tl.constexpr`` parameters.
        options: ``num_warps`` and ``num_stages``.
    """
    if _recording is not None:
        _recording.append(_note(Launch(kernel, grid, arguments, constants, options)))
        return
    kernel[grid](**arguments, **constants, **options)


@contextmanager
def recorded(
    capability: tuple[int, int] = (9, 0), note: Callable[[Launch], Any] = lambda launch: launch
) -> Iterator[list[Any]]:
    """Note down the launches for a GPU instead of making them; results hold anything.

    Args:
        capability: of the GPU.
        note: what is kept of a launch. All of it by default, its tensors too.
    """
    global _recording, _note, _recorded_for
    before = _recording, _note, _recorded_for
    _recording, _note, _recorded_for = [], note, capability
    try:
        yield _recording
    finally:
        _recording, _note, _recorded_for = before


def capability() -> tuple[int, int]:
    """Of the GPU that kernels are started on, or recorded for; (9, 0) in the interpreter."""
    if _recording is not None or not torch.cuda.is_available():
        return _recorded_for
    return torch.cuda.get_device_capability()
