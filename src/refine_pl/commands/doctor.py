"""``refine-pl doctor``: what is installed, which devices there are, and which kernels would run."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

_SHOWN_PACKAGES = (
    "refine-pl",
    "torch",
    "lightning",
    "jsonargparse",
    "triton",
    "flash-linear-attention",
    "transformers",
    "datasets",
    "torchmetrics",
)


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
        0 if a fit can run on this machine, else 1.
    """
    parser = argparse.ArgumentParser(
        prog="refine-pl doctor",
        description="Versions, devices, and which kernels would run. Exit code 1 if a fit cannot.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    report = examine()
    if options.json:
        sys.stdout.write(json.dumps(asdict(report), indent=2) + "\n")
    else:
        sys.stdout.write(render(report))
    return 1 if report.problems else 0


def examine() -> Report:
    """Look at this machine. Imports torch, and nothing else that is heavy."""
    report = Report()
    report.packages = {name: _version(name) or "not installed" for name in _SHOWN_PACKAGES}
    _requirements(report)
    report.system = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cache": _cache_folder(),
    }
    _devices(report)
    _kernels(report)
    return report


def render(report: Report) -> str:
    """The report as text of at most 100 columns where names allow it."""
    parts = [
        _section("system", [(name, text) for name, text in report.system.items()]),
        _section("packages", [(name, text) for name, text in report.packages.items()]),
        _section(
            "requirements",
            [
                (row["requirement"], f"{row['installed'] or 'missing'}: not met")
                for row in report.requirements
                if not row["met"]
            ]
            or [(f"all {len(report.requirements)} of refine-pl", "met")],
        ),
        _section("devices", [(row["device"], row["details"]) for row in report.devices]),
        _section(
            "kernels",
            [
                (
                    f"{row['op']}: {row['implementation']}",
                    f"{'used' if row['chosen'] else 'not used'}, {row['reason']}",
                )
                for row in report.kernels
            ],
        ),
    ]
    if report.problems:
        parts.append("a fit cannot run:\n" + "".join(f"  {text}\n" for text in report.problems))
    else:
        parts.append("a fit can run on this machine\n")
    return "\n".join(parts)


def _section(title: str, rows: Sequence[tuple[str, str]]) -> str:
    width = max((len(name) for name, _ in rows), default=0)
    return f"{title}\n" + "".join(f"  {name:<{width}}  {text}\n" for name, text in rows)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _requirements(report: Report) -> None:
    try:
        from packaging.requirements import Requirement

        found = requires("refine-pl") or []
    except (PackageNotFoundError, ImportError) as error:
        report.problems.append(f"refine-pl is not installed: no package {error.name}")
        return
    for text in found:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = _version(requirement.name)
        met = installed is not None and requirement.specifier.contains(installed, prereleases=True)
        report.requirements.append(
            {"requirement": str(requirement), "installed": installed, "met": met}
        )
        if not met:
            report.problems.append(f"{requirement} is required, found {installed or 'nothing'}")


def _cache_folder() -> str:
    try:
        return str(importlib.import_module("refine_pl.data.cache_files").default_cache_dir())
    except ImportError as error:
        return f"unknown: {error}"


def _devices(report: Report) -> None:
    try:
        import torch
    except Exception as error:  # a broken installation raises anything
        report.problems.append(f"torch cannot be imported: {_first_line(error)}")
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    report.devices.append(
        {"device": "cpu", "details": f"{cores} cores, {torch.get_num_threads()} torch threads"}
    )
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch is built for CUDA {built}" if built else "torch is built without CUDA"
        report.devices.append({"device": "cuda", "details": f"none found; {why}"})
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        details = (
            f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
            f"capability {properties.major}.{properties.minor}"
        )
        report.devices.append({"device": f"cuda:{index}", "details": details})


def _kernels(report: Report) -> None:
    try:
        rows = importlib.import_module("refine_kernels.backends").report()
    except Exception as error:
        report.problems.append(f"the kernels cannot be examined: {_first_line(error)}")
        return
    report.kernels = [
        {
            "op": row.op,
            "implementation": row.implementation,
            "chosen": row.chosen,
            "reason": row.reason,
        }
        for row in rows
    ]
    for op in dict.fromkeys(row.op for row in rows):
        if not any(row.chosen for row in rows if row.op == op):
            report.problems.append(f"no implementation of {op} can run")


def _first_line(error: Exception) -> str:
    return re.split(r"\n", str(error).strip() or type(error).__name__)[0]
