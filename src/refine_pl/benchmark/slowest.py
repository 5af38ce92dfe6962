"""What takes most time in an update: kernels on CUDA, operators on a CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from refine_kernels.clock import now


@dataclass(frozen=True, slots=True)
class Slow:
    """One kernel or operator, all of its calls together."""

    name: str
    calls: int
    seconds: float  # its own, without those of what it calls
    share: float  # of all of them

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def profiled(work: Callable[[], object], device: torch.device, count: int = 10) -> list[Slow]:
    """Run ``work`` once under torch's profiler.

    Args:
        work: that is watched, warmed up already.
        device: where it runs.
        count: how many are returned.

    Returns:
        The slowest first.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it would tell of its starts and stops
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as seen:
        work()
        now(device)
    return slowest(seen.key_averages(), device, count)


def slowest(events: Iterable[Any], device: torch.device, count: int = 10) -> list[Slow]:
    """Of a profile's averages those with most time of their own.

    Args:
        events: what ``profile.key_averages()`` returns.
        device: CUDA: kernels and copies, by their time on the GPU; else operators, by their time on
            the CPU.
        count: how many are returned.
    """
    seconds: dict[str, float] = {}
    calls: dict[str, int] = {}
    for event in events:
        kind = event.device_type.name.lower()
        if kind != device.type or (kind == "cuda" and event.is_user_annotation):
            continue  # an annotation's time on the GPU is that of the kernels inside
        spent = event.self_device_time_total if kind == "cuda" else event.self_cpu_time_total
        seconds[event.key] = seconds.get(event.key, 0.0) + 1e-6 * spent
        calls[event.key] = calls.get(event.key, 0) + event.count
    total = sum(seconds.values())
    first = sorted(seconds, key=lambda name: seconds[name], reverse=True)[:count]
    return [
        Slow(name, calls[name], seconds[name], seconds[name] / total)
        for name in first
        if seconds[name] > 0
    ]


_WIDTH = 48


def render_slowest(found: Iterable[Slow]) -> str:
    """A row for each, of at most 80 columns; long names lose their middle."""
    lines = [f"{'':<{_WIDTH}}{'calls':>9}{'ms':>12}{'share':>8}"]
    for each in found:
        name = each.name
        if len(name) > _WIDTH:
            head = (_WIDTH - 3) * 2 // 3
            name = f"{name[:head]}...{name[head + 3 - _WIDTH :]}"
        ms = 1000 * each.seconds
        lines.append(f"{name:<{_WIDTH}}{each.calls:>9,}{ms:>12,.1f}{each.share:>8.1%}")
    return "\n".join(lines)
