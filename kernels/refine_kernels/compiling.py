"""Every Triton kernel of this package compiled for a GPU that need not be here.

The launches that are compiled are recorded from the operations themselves, with tensors of the
device ``meta`` at real sizes (``kernel_cases`` of each operation). What comes out says whether a
kernel fits a chip: registers that do not suffice and are spilled to memory, shared memory, and
whether products run on tensor cores and loads are asynchronous. It says nothing about speed.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from refine_kernels.kernel_cases import CASES, known_spills
from refine_kernels.launching import Launch, recorded

KIB = 1024
# Shared memory that one block can have, bytes (CUDA C++ programming guide, compute capabilities).
SHARED_LIMITS = {
    "sm_80": 163 * KIB,
    "sm_86": 99 * KIB,
    "sm_89": 99 * KIB,
    "sm_90": 227 * KIB,
    "sm_100": 227 * KIB,
    "sm_103": 227 * KIB,
    "sm_120": 99 * KIB,
}
_TENSOR_CORE = r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)"
_ASYNC_COPY = r"\bcp\.async\.(?:c[ag]|bulk\.tensor)"


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel in one configuration, for one chip."""

    op: str
    kernel: str
    variant: str  # its constants
    chip: str
    registers: int
    spilled_bytes: int  # stores to and loads from memory for want of registers
    shared_bytes: int
    tensor_core: int  # instructions of the PTX
    async_copies: int
    seconds: float
    problems: tuple[str, ...]


def compile_all(chip: str, only: str = "") -> Iterator[Compiled]:
    """Compile every recorded kernel for ``chip``, one after the other.

    Args:
        chip: one of :data:`SHARED_LIMITS`, such as ``sm_90``.
        only: cases whose names begin so.

    Raises:
        ValueError: another chip, or a process in which Triton interprets.
    """
    from refine_kernels.backends import interpreted

    if chip not in SHARED_LIMITS:
        raise ValueError(f"unknown chip {chip!r}; known: {', '.join(SHARED_LIMITS)}")
    if interpreted():
        raise ValueError("TRITON_INTERPRET=1 is set: Triton would interpret and not compile")
    for op, case in CASES.items():
        if not op.startswith(only):
            continue
        with recorded(_capability(chip)) as launches:
            case(torch.device("meta"))
        for launch in _different(launches):
            yield compile_launch(op, launch, chip)


def compile_launch(op: str, launch: Launch, chip: str) -> Compiled:
    """Compile the kernel of one launch; a compiler that fails is one of its ``problems``."""
    start = time.perf_counter()
    kernel = launch.kernel.fn.__name__
    variant = " ".join(f"{name}={value}" for name, value in launch.constants.items())
    try:
        shared, ptx, said = _assemble(launch, int(chip.removeprefix("sm_")))
    except Exception as error:  # whatever a compiler may say
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        seconds = time.perf_counter() - start
        return Compiled(op, kernel, variant, chip, 0, 0, 0, 0, 0, seconds, (reason,))
    registers = re.search(r"Used (\d+) registers", said)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", said)
    spilled = sum(map(int, spills))
    tensor_core, copies = len(re.findall(_TENSOR_CORE, ptx)), len(re.findall(_ASYNC_COPY, ptx))
    problems = []
    if shared > SHARED_LIMITS[chip]:
        problems.append(f"{shared} bytes of shared memory; a block has {SHARED_LIMITS[chip]}")
    known = known_spills(kernel, chip, variant)
    if spilled > known:
        problems.append(f"{spilled} bytes spilled, {known} expected")
    if "tl.dot" in launch.kernel.src and not tensor_core:
        problems.append("no tensor-core instructions")
    return Compiled(
        op, kernel, variant, chip, int(registers.group(1)) if registers else 0, spilled, shared,
        tensor_core, copies, time.perf_counter() - start, tuple(problems),
    )  # fmt: skip


def _assemble(launch: Launch, arch: int) -> tuple[int, str, str]:
    """Bytes of shared memory, the PTX, and what the assembler says about it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    signature, constants, attributes = _signature(launch)
    place = {name: (names.index(name),) for name in signature}
    source = ASTSource(
        launch.kernel,
        signature,
        {place[name]: value for name, value in constants.items()},
        {place[name]: found for name, found in attributes.items()},
    )
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)
    ptx = made.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        target = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
        to = str(path.with_suffix(".bin"))
        command = [_assembler(arch), "-v", f"-arch={target}", str(path), "-o", to]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return made.metadata.shared, ptx, done.stderr


def _assembler(arch: int) -> str:
    """The one that comes with Triton; its name is said in different ways by its releases."""
    from triton.backends.nvidia.compiler import get_ptxas

    found: Any = get_ptxas(arch) if inspect.signature(get_ptxas).parameters else get_ptxas()
    return str(found[0] if isinstance(found, tuple) else found.path)


def _signature(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
    """Types, constants and alignments, as Triton finds them in the arguments of a launch."""
    types = {
        torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32",
        torch.int8: "i8", torch.int32: "i32", torch.int64: "i64",
    }  # fmt: skip
    signature, constants, aligned = {}, dict(launch.constants), {}
    values = launch.arguments | launch.constants
    plain = {p.name for p in launch.kernel.params if p.do_not_specialize}
    for name in launch.kernel.arg_names:
        value = values[name]
        if isinstance(value, torch.Tensor):
            signature[name] = f"*{types[value.dtype]}"
            aligned[name] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif name in launch.constants or value is None or (value == 1 and name not in plain):
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = "i32"
            if value % 16 == 0 and name not in plain:
                aligned[name] = [["tt.divisibility", 16]]
    return signature, constants, aligned


def _capability(chip: str) -> tuple[int, int]:
    return divmod(int(chip.removeprefix("sm_")), 10)


def _different(launches: list[Launch]) -> list[Launch]:
    """One of those that would compile to the same."""
    found: dict[tuple[str, ...], Launch] = {}
    for launch in launches:
        key = (launch.kernel.fn.__name__, repr(_signature(launch)), repr(launch.options))
        found.setdefault(key, launch)
    return list(found.values())
