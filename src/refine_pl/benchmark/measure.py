"""Interleaved repeats of all arms, their medians and spread, and the memory of one more."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from refine_kernels.clock import now
from refine_pl.benchmark.arms import Arm
from refine_pl.benchmark.memory import PeakMemory
from refine_pl.records import Batch
from refine_pl.stopwatch import Stopwatch
from refine_pl.training.updater import Updater


@dataclass
class Result:
    """What was measured of one arm."""

    name: str
    seconds: list[float] = field(default_factory=list)  # of each whole update
    parts: list[dict[str, float]] = field(default_factory=list)  # seconds of its parts
    ratios: list[float] = field(default_factory=list)  # to the first arm, in the same round
    peak_bytes: int = 0

    @property
    def median_s(self) -> float:
        """The median of whole updates, seconds."""
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        """The median of the ratios to the first arm."""
        return statistics.median(self.ratios)

    def part_s(self, name: str) -> float:
        """The median of a part, seconds; 0 if the arm has no such part."""
        return statistics.median([parts.get(name, 0.0) for parts in self.parts])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        names = dict.fromkeys(name for parts in self.parts for name in parts)
        return {
            "name": self.name,
            "median_s": self.median_s,
            "min_s": min(self.seconds),
            "max_s": max(self.seconds),
            "repeats": len(self.seconds),
            "ratio_to_sft": self.ratio,
            "parts_s": {name: self.part_s(name) for name in names},
            "peak_bytes": self.peak_bytes,
        }


def measure(
    updater: Updater,
    batch: Batch,
    arms: Sequence[Arm],
    repeats: int,
    device: torch.device,
    slow: Arm | None = None,
    slow_repeats: int = 1,
) -> list[Result]:
    """Run every arm once to warm up, then all of them in turn, ``repeats`` times.

    Interleaving lets a machine whose speed drifts slow all arms alike; the ratios are taken round
    by round. ``slow`` comes last, takes part in the first ``slow_repeats`` rounds only, and is not
    warmed up: next to its length a first run's surplus is nothing.
    """
    results = [Result(arm.name) for arm in arms]
    for arm in arms:
        arm.run(updater, batch)
    if slow is not None:
        arms = [*arms, slow]
        results.append(Result(slow.name))
    for done in range(repeats):
        first = 0.0
        for arm, result in zip(arms, results, strict=True):
            if arm is slow and done >= slow_repeats:
                continue
            updater.stopwatch = Stopwatch(device)
            start = now(device)
            arm.run(updater, batch)
            seconds = now(device) - start
            first = first or seconds
            result.seconds.append(seconds)
            result.parts.append(updater.stopwatch.seconds)
            result.ratios.append(seconds / first)
    for arm, result in zip(arms, results, strict=True):
        updater.stopwatch = Stopwatch(enabled=False)  # its work takes longer while it is watched
        with PeakMemory(device) as memory:
            arm.run(updater, batch)
        result.peak_bytes = memory.peak_bytes
    return results
