"""Which implementation of an operation runs, and why."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

FlaBackend = Literal["auto", "torch", "fla"]  # of operations that fla has kernels for
CompiledBackend = Literal["auto", "torch", "compiled"]  # of those that can be compiled
Backend = Literal["auto", "torch", "fla", "compiled"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One implementation of one operation on this machine."""

    op: str
    implementation: str
    chosen: bool
    reason: str


def fla_missing() -> str | None:
    """Why flash-linear-attention's kernels cannot run here, or None if they can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if importlib.util.find_spec("fla") is None:
        return "flash-linear-attention is not installed"
    return None


def compiler_missing() -> str | None:
    """Why torch cannot compile for the CPU here, or None if it can."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler})"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python's C headers are not installed (python3-dev)"
    return None


def choose(
    backend: FlaBackend, device: torch.device, dtype: torch.dtype
) -> Literal["torch", "fla"]:
    """The implementation that ``backend`` means for tensors of this device and type.

    Raises:
        ValueError: the backend that was asked for by name cannot run.
    """
    reason = fla_missing() if device.type == "cuda" else f"the tensors are on {device.type}"
    if reason is None and dtype not in (torch.bfloat16, torch.float16):
        reason = f"its chunk kernels take bfloat16 or float16, not {dtype}"
    if backend == "fla" and reason is not None:
        raise ValueError(
            f"backend 'fla' cannot run: {reason}; use backend 'auto' or 'torch', or train in "
            "bf16-mixed on a CUDA device"
        )
    if backend == "torch" or reason is not None:
        return "torch"
    return "fla"


def report() -> list[Choice]:
    """Every implementation of every operation, and what ``auto`` picks on this machine."""
    fla, compiler = fla_missing(), compiler_missing()
    chunked = "chunked, own backward" if fla else "used for float32 and float64 only"
    long_rows = "but for long rows in float32 on a CPU: element-wise work"
    return [
        Choice("delta_rule", "fla", fla is None, fla or "CUDA, in bfloat16 or float16"),
        Choice("delta_rule", "torch", fla is not None, chunked),
        Choice("lact_update", "torch", True, "chunks of fast weights, own backward"),
        Choice("lact_update", "compiled", False, compiler or long_rows),
        Choice("delta_rule_shared", "torch", True, "short continuations of shared states"),
        Choice("short_conv", "torch", True, "own backward on the CPU, conv1d on CUDA"),
        Choice("window_attention", "torch", True, "blocks of queries, scaled dot products"),
        Choice("token_stats", "torch", True, "blocks of tokens, recomputed in the backward pass"),
    ]
