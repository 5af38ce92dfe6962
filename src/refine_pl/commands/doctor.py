"""``refine-pl doctor``: what is installed, which devices there are, and which kernels would run."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from refine_pl.commands.arguments import Arguments
from refine_pl.commands.verifying import verify
from refine_pl.errors import ConfigError

_SHOWN_PACKAGES = (
    *("refine-pl", "torch", "lightning", "jsonargparse", "triton", "flash-linear-attention"),
    *("transformers", "datasets", "torchmetrics"),
)

_COMPILED = "  {:<24} {:>9} {:>9} {:>10} {:>8} {:>8}\n"
_COMPILED_TITLES = ("kernel", "registers", "spilled", "shared", "products", "copies")
_COMPILED_LEGEND = """
spilled   bytes that are kept in memory, because there are not enough registers
shared    bytes of shared memory that a block of threads takes
products  instructions of the tensor cores;  copies  asynchronous loads
"""


@dataclass
class Report:
    """All that doctor knows. ``problems`` is empty if a fit can run."""

    system: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    requirements: list[dict[str, Any]] = field(default_factory=list)
    devices: list[dict[str, str]] = field(default_factory=list)
    kernels: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def main(argv: Sequence[str]) -> int:
    """Print the report.

    Args:
        argv: the options.

    Returns:
        0 if a fit can run on this machine, else 1; with ``--verify`` whether the files are sound.

    Raises:
        ConfigError: there is nothing to verify.
    """
    parser = Arguments(
        prog="refine-pl doctor",
        description="Versions, devices, and which kernels would run. Exit code 1 if a fit cannot.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--verify",
        metavar="FOLDER",
        help="instead, compare the files of an exported folder, of a cache, or the checkpoints of "
        "runs with their checksums; exit code 1 if one is damaged or missing",
    )
    parser.add_argument(
        "--compile",
        metavar="CHIP",
        help="instead, compile every Triton kernel for a chip such as sm_90, which need not be "
        "here; some minutes. Exit code 1 if a kernel does not fit it",
    )
    args = parser.parse_args(argv)
    as_json = args.json
    if args.verify is not None:
        found = verify(args.verify)
        text = json.dumps(found.as_json(), indent=2) + "\n" if as_json else found.render()
        sys.stdout.write(text)
        return 0 if found.is_sound else 1
    if args.compile is not None:
        return compile_kernels(args.compile, as_json)
    report = examine()
    sys.stdout.write(json.dumps(asdict(report), indent=2) + "\n" if as_json else render(report))
    return 1 if report.problems else 0


def examine() -> Report:
    """Look at this machine. Imports torch, and nothing else that is heavy."""
    report = Report()
    report.packages = {name: _version(name) or "not installed" for name in _SHOWN_PACKAGES}
    report.system = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
    }
    _requirements(report)
    _devices(report)
    try:
        cache = importlib.import_module("refine_pl.data.cache_files").default_cache_dir()
        report.system["cache"] = str(cache)
        _kernels(report)
    except Exception as error:  # a broken installation raises anything
        report.problems.append(f"this package cannot be imported: {_first_line(error)}")
    return report


def render(report: Report) -> str:
    """The report as text of at most 100 columns where names allow it."""
    unmet = {
        row["requirement"]: f"{row['installed'] or 'missing'}: not met"
        for row in report.requirements
        if not row["met"]
    }
    sections = {
        "system": report.system,
        "packages": report.packages,
        "requirements": unmet or {f"all {len(report.requirements)} of refine-pl": "met"},
        "devices": {row["device"]: row["details"] for row in report.devices},
        "kernels": {
            f"{row['op']}: {row['implementation']}": ("used, " if row["chosen"] else "not used, ")
            + row["reason"]
            for row in report.kernels
        },
    }
    text = ""
    for title, rows in sections.items():
        width = max(map(len, rows), default=0)
        lines = "".join(f"  {name:<{width}}  {said}\n" for name, said in rows.items())
        text += f"{title}\n{lines}\n"
    problems = "".join(f"  {problem}\n" for problem in report.problems)
    verdict = f"a fit cannot run:\n{problems}" if problems else "a fit can run on this machine\n"
    return text + verdict


def compile_kernels(chip: str, as_json: bool) -> int:
    """Print what the compiler says of every Triton kernel, each as it is done.

    Args:
        chip: for which, such as ``sm_90``.
        as_json: print one list of JSON instead, at the end.

    Returns:
        1 if a kernel does not compile or does not fit the chip, else 0.

    Raises:
        ConfigError: no such chip, or nothing that could compile.
    """
    compiling = importlib.import_module("refine_kernels.compiling")
    if chip not in compiling.SHARED_LIMITS:
        chips = ", ".join(compiling.SHARED_LIMITS)
        raise ConfigError(f"no chip {chip!r}", where="--compile", allowed=chips)
    if _version("triton") is None:
        way_out = "pip install triton"
        raise ConfigError("triton is not installed", where="--compile", way_out=way_out)
    if not as_json:
        limit = compiling.SHARED_LIMITS[chip]
        sys.stdout.write(f"{chip}: a block has {limit:,} bytes of shared memory\n\n")
        sys.stdout.write(_COMPILED.format(*_COMPILED_TITLES))
    rows: list[Any] = []
    for row in compiling.compile_all(chip):
        if not as_json:
            if not rows or rows[-1].op != row.op:
                sys.stdout.write(f"{row.op}\n")
            sys.stdout.write(_compiled(row))
            sys.stdout.flush()
        rows.append(row)
    failed = sum(bool(row.problems) for row in rows)
    if as_json:
        sys.stdout.write(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    else:
        sys.stdout.write(
            f"{_COMPILED_LEGEND}\n{len(rows)} kernels compiled for {chip}, {failed} of them with "
            "problems; none was run\n"
        )
    return 1 if failed else 0


def _compiled(row: Any) -> str:
    """One kernel's line, and what is wrong with it."""
    numbers = (row.registers, row.spilled_bytes, row.shared_bytes, row.tensor_core)
    line = _COMPILED.format(row.kernel, *(f"{x:,}" for x in (*numbers, row.async_copies)))
    wrong = [*row.problems, f"with {row.variant}"] if row.problems else []
    return line + "".join(textwrap.indent(textwrap.fill(x, 74), "      ") + "\n" for x in wrong)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _requirements(report: Report) -> None:
    try:
        from packaging.requirements import Requirement

        found = [Requirement(text) for text in requires("refine-pl") or []]
    except (PackageNotFoundError, ImportError) as error:
        report.problems.append(f"refine-pl is not installed: no package {error.name}")
        return
    for needed in found:
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        there = _version(needed.name)
        met = there is not None and needed.specifier.contains(there, prereleases=True)
        report.requirements.append({"requirement": str(needed), "installed": there, "met": met})
        if not met:
            report.problems.append(f"{needed} is required, found {there or 'nothing'}")


def _devices(report: Report) -> None:
    try:
        import torch
    except Exception as error:  # a broken installation raises anything
        report.problems.append(f"torch cannot be imported: {_first_line(error)}")
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"cpu": f"{cores} cores, {torch.get_num_threads()} torch threads"}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            size, capability = f"{gpu.total_memory / 2**30:.0f} GiB", f"{gpu.major}.{gpu.minor}"
            found[f"cuda:{index}"] = f"{gpu.name}, {size}, capability {capability}"
    else:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        found["cuda"] = f"none found; torch is built {built}"
    report.devices = [{"device": name, "details": text} for name, text in found.items()]


def _kernels(report: Report) -> None:
    names = ("op", "implementation", "chosen", "reason")
    rows = importlib.import_module("refine_kernels.backends").report()
    report.kernels = [{name: getattr(row, name) for name in names} for row in rows]
    usable = {row.op for row in rows if row.chosen}
    unusable = dict.fromkeys(row.op for row in rows if row.op not in usable)
    report.problems += [f"no implementation of {op} can run" for op in unusable]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
