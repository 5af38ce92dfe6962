"""Interleaved repeats of all arms, their medians, spread and memory, and a table of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from refine_kernels.clock import now
from refine_pl.benchmark.arms import Arm
from refine_pl.benchmark.memory import PeakMemory
from refine_pl.benchmark.peak import Peak, Products
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
    peak_bytes: int | None = None  # None: not measured
    flop: int | None = None  # of its products; likewise

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

    def share(self, peak: Peak) -> float | None:
        """Of the machine's peak, that the products of an update use."""
        return None if self.flop is None else peak.share(self.flop, self.median_s)

    def as_dict(self, peak: Peak) -> dict[str, Any]:
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
            "product_flop": self.flop,
            "share_of_peak": self.share(peak),
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
    by round. ``slow`` comes last, takes part in the first ``slow_repeats`` rounds only, and is
    neither warmed up (next to its length a first run's surplus is nothing) nor run once more for
    its memory and its products.
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
        if arm is slow:
            continue
        updater.stopwatch = Stopwatch(enabled=False)  # its work takes longer while it is watched
        with PeakMemory(device) as memory, Products() as products:
            arm.run(updater, batch)
        result.peak_bytes, result.flop = memory.peak_bytes, products.flop
    return results


PARTS = ("prefill", "select", "rollout", "reward", "update")


def render(results: Sequence[Result], tokens: int, peak: Peak) -> str:
    """Two tables of at most 80 columns, with a row for each arm.

    Seconds, ratio to the first arm, tokens/s and the share of the peak; parts and peak memory.

    Args:
        results: the first one is what the others are compared with.
        tokens: of the sequences of one update.
        peak: of the machine.
    """
    whole = [["", "seconds", "min-max", "x SFT", "tokens/s", "of peak"]]
    parts = [["", *PARTS, "peak GiB"]]
    for result in results:
        share, memory = result.share(peak), result.peak_bytes
        whole.append(
            [
                result.name,
                f"{result.median_s:.3f}",
                f"{min(result.seconds):.2f}-{max(result.seconds):.2f}",
                f"{result.ratio:.2f}",
                f"{tokens / result.median_s:,.0f}",
                "-" if share is None else f"{share:.1%}",
            ]
        )
        parts.append(
            [
                result.name,
                *(f"{s:.3f}" if s else "-" for s in map(result.part_s, PARTS)),
                "-" if memory is None else f"{memory / 2**30:.2f}",
            ]
        )
    return _table(whole) + "\n\nseconds of its parts, and peak memory\n" + _table(parts)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def summary(results: Sequence[Result]) -> dict[str, float]:
    """The ratios that are the benchmark's point, medians of interleaved repeats."""
    sft, one, two_pass, many, dense, recompute = results

    def against(a: Result, b: Result) -> float:
        # Round by round; the recomputed arm takes part in the first rounds only.
        return statistics.median(x / y for x, y in zip(a.seconds, b.seconds, strict=False))

    assert one.peak_bytes is not None
    assert sft.peak_bytes is not None
    return {
        "ReFINE update / SFT update": against(one, sft),
        "two-pass update / SFT update": against(two_pass, sft),
        "N=8 / N=1": against(many, one),
        "S=64 / recipe's S": against(dense, one),
        "recompute / joined": against(recompute, one),
        "peak memory ReFINE / SFT": one.peak_bytes / sft.peak_bytes,
    }
