"""Which implementation of an operation runs, and why."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sysconfig
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, get_args

import torch

MAX_KEY_WIDTH = 256  # of the Triton kernels: a program holds all rows of some columns of the state

DeltaBackend = Literal["auto", "torch", "triton", "fla"]  # of the delta rule
CompiledBackend = Literal["auto", "torch", "compiled", "triton"]  # of LaCT's element-wise work
OwnBackend = Literal["auto", "torch", "triton"]  # of those with Triton kernels of this package
Backend = Literal["auto", "torch", "fla", "compiled"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One implementation of one operation on this machine."""

    op: str
    implementation: str
    chosen: bool
    reason: str


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU: for tests, very slowly."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_missing() -> str | None:
    """Why this package's Triton kernels cannot run here, or None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return "compute capability {}.{} has no bfloat16 products".format(*capability)
    # It stops at tuples of pointers (three convolutions), and at a recurrence on Hopper.
    if _release(triton_version()) < (3, 4):
        return f"Triton {triton_version()} does not compile all of them; 3.4 does (torch 2.8)"
    return None


def fla_missing() -> str | None:
    """Why flash-linear-attention's kernels cannot run here, or None if they can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if importlib.util.find_spec("fla") is None:
        return "flash-linear-attention is not installed"
    return None


def fla_decay_fault() -> str | None:
    """Why its kernels with decay are not to be used here, or None.

    On Hopper, Triton 3.4 to 3.7.0 compiles its gated backward pass to wrong results, and it raises;
    with tilelang it does that pass in another way.
    """
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        return None
    right = not (3, 4, 0) <= _release(triton_version()) < (3, 7, 1)
    if right or importlib.util.find_spec("tilelang") is not None:
        return None
    return f"with decay, Triton {triton_version()} compiles its backward pass wrongly on Hopper"


@cache
def triton_version() -> str:
    """That of the installed one, which is read once: every operation asks."""
    try:
        return version("triton")
    except PackageNotFoundError:  # as nightly builds, whose package has another name
        import triton

        return str(triton.__version__)


def _release(found: str) -> tuple[int, ...]:
    return tuple(int(x) for x in re.findall(r"\d+", found)[:3])


def compiler_missing() -> str | None:
    """Why torch cannot compile for the CPU here, or None if it can."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler})"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python's C headers are not installed (python3-dev)"
    return None


def choose(
    backend: DeltaBackend, device: torch.device, dtype: torch.dtype, key_width: int, decay: bool
) -> Literal["torch", "triton", "fla"]:
    """The implementation of the delta rule that ``backend`` means.

    ``auto``: fla's kernels on CUDA for 16-bit inputs; where those are wrong on this GPU or missing,
    this package's Triton kernels; else torch. Ours have not been run on a GPU yet, so where fla's
    are right they are the ones to trust.

    Args:
        backend: that was asked for.
        device: of the tensors.
        dtype: of q.
        key_width: of a head.
        decay: whether there is one.

    Raises:
        ValueError: the backend that was asked for by name cannot run.
    """
    reasons: dict[Literal["torch", "triton", "fla"], str | None] = {
        "fla": _fla_unfit(device, dtype, decay),
        "triton": _triton_unfit(device, dtype, key_width),
        "torch": None,
    }
    if backend == "auto":
        if device.type != "cuda":
            return "torch"
        return next(name for name, reason in reasons.items() if reason is None)
    reason = reasons[backend]
    if reason is not None:
        raise ValueError(
            f"backend {backend!r} cannot run: {reason}; use backend 'auto' or 'torch', or train in "
            "bf16-mixed on a CUDA device"
        )
    return backend


def takes_triton(
    op: str, backend: OwnBackend, device: torch.device, unfit: str | None = None
) -> bool:
    """Whether the Triton kernels of ``op`` run; else torch does it.

    Args:
        op: name of the operation, for the message.
        backend: that was asked for; ``auto`` takes the kernels on CUDA wherever they can run,
            unless the environment has ``REFINE_KERNELS=torch``.
        device: of the tensors.
        unfit: why the kernels do not take these tensors, or None.

    Raises:
        ValueError: no such backend, or kernels asked for by name that cannot run.
    """
    if backend not in get_args(OwnBackend):
        raise ValueError(f"{op} has no backend {backend!r}; use auto, torch or triton")
    if backend == "torch":
        return False
    on_cuda = device.type == "cuda"
    if backend == "auto":
        refused = os.environ.get("REFINE_KERNELS") == "torch"
        return on_cuda and not refused and unfit is None and triton_missing() is None
    if unfit is None:
        elsewhere = not on_cuda and not interpreted()
        unfit = f"the tensors are on {device.type}" if elsewhere else triton_missing()
    if unfit is not None:
        raise ValueError(f"{op}: backend 'triton' cannot run: {unfit}; use 'auto' or 'torch'")
    return True


def not_for_kernels(*tensors: torch.Tensor) -> str | None:
    """Why element-wise Triton kernels do not take these tensors, or None: they sum in float32."""
    wide = any(x.dtype == torch.float64 for x in tensors)
    return "its kernels compute in float32, not in float64" if wide else None


def not_for_products(dtype: torch.dtype, key_width: int = 1) -> str | None:
    """Why Triton kernels with matrix products do not take these operands, or None.

    Args:
        dtype: of the operands.
        key_width: of a head, where there are keys.
    """
    if key_width > MAX_KEY_WIDTH:
        return f"its kernels take keys of width {MAX_KEY_WIDTH} at most, not {key_width}"
    return None if interpreted() else _not_16_bits(dtype)


def _triton_unfit(device: torch.device, dtype: torch.dtype, key_width: int) -> str | None:
    if key_width > MAX_KEY_WIDTH:
        return f"its kernels take keys of width {MAX_KEY_WIDTH} at most, not {key_width}"
    if interpreted():
        return triton_missing()
    if device.type != "cuda":
        return f"the tensors are on {device.type}"
    return triton_missing() or _not_16_bits(dtype)


def _fla_unfit(device: torch.device, dtype: torch.dtype, decay: bool) -> str | None:
    if device.type != "cuda":
        return f"the tensors are on {device.type}"
    return fla_missing() or _not_16_bits(dtype) or (fla_decay_fault() if decay else None)


def _not_16_bits(dtype: torch.dtype) -> str | None:
    if dtype in (torch.bfloat16, torch.float16):
        return None
    return f"its chunk kernels take bfloat16 or float16, not {dtype}"


def _own(op: str, by_torch: str, kinds: str = "but not in float64") -> list[Choice]:
    """The rows of an operation with Triton kernels that ``auto`` takes wherever they can run."""
    taken = takes_triton(op, "auto", torch.device("cuda"))
    kernels = triton_missing() or (f"CUDA, {kinds}" if taken else "REFINE_KERNELS=torch")
    return [Choice(op, "triton", taken, kernels), Choice(op, "torch", not taken, by_torch)]


def report() -> list[Choice]:
    """Every implementation of every operation, and what ``auto`` picks on this machine."""
    own, fla, compiler = triton_missing(), fla_missing(), compiler_missing()
    on_gpu = torch.cuda.is_available()
    own_runs, fla_runs = on_gpu and own is None, fla is None
    fault = fla_decay_fault() if fla_runs else None
    chunked = "used for float32 and float64 only" if own_runs or fla_runs else "on a CPU"
    long_rows = "but for long rows in float32 on a CPU: element-wise work"
    in_16_bits = "in bfloat16 or float16"
    instead = "if asked for by name" if fla_runs and fault is None else None
    if fla_runs and fault is not None:
        instead = f"with decay, {in_16_bits}"
    return [
        Choice("delta_rule", "fla", fla_runs, fla or fault or f"CUDA, {in_16_bits}"),
        Choice(
            "delta_rule",
            "triton",
            own_runs and (not fla_runs or fault is not None),
            own or instead or f"CUDA, {in_16_bits}",
        ),
        Choice("delta_rule", "torch", not (own_runs or fla_runs), chunked + ", own backward"),
        *_own("lact_update", "chunks of fast weights, own backward"),
        Choice("lact_update", "compiled", False, compiler or long_rows),
        *_own("delta_rule_shared", "short continuations of shared states", in_16_bits),
        *_own("short_conv", "blocks of tokens on the CPU, conv1d on CUDA"),
        *_own("gated_norm", "rms_norm too"),
        *_own("swiglu", "two element-wise steps"),
        Choice("window_attention", "torch", True, "blocks of queries, scaled dot products"),
        *_own("token_stats", "blocks of tokens, logits computed twice", in_16_bits),
    ]
