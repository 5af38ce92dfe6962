"""The benchmark's table, for people."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from refine_pl.benchmark.measure import Result

PARTS = ("prefill", "select", "rollout", "reward", "update")


def render(results: Sequence[Result], tokens: int) -> str:
    """A row for each arm: seconds, ratio to the first, parts, tokens/s and peak memory.

    Args:
        results: the first one is what the others are compared with.
        tokens: of the sequences of one update.
    """
    header = ["", "seconds", "min-max", "x SFT", *PARTS, "tokens/s", "peak GiB", "x SFT"]
    rows = [header]
    base = results[0]
    for result in results:
        rows.append(
            [
                result.name,
                f"{result.median_s:.3f}",
                f"{min(result.seconds):.2f}-{max(result.seconds):.2f}",
                f"{result.ratio:.2f}",
                *(_seconds(result.part_s(part)) for part in PARTS),
                f"{tokens / result.median_s:,.0f}",
                f"{result.peak_bytes / 2**30:.2f}",
                f"{result.peak_bytes / base.peak_bytes:.2f}",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value else "-"


def summary(results: Sequence[Result]) -> dict[str, float]:
    """The ratios that are the benchmark's point, medians of interleaved repeats."""
    sft, one, many, dense, recompute = results

    def against(a: Result, b: Result) -> float:
        # Round by round; the recomputed arm takes part in the first rounds only.
        return statistics.median(x / y for x, y in zip(a.seconds, b.seconds, strict=False))

    return {
        "ReFINE update / SFT update": against(one, sft),
        "N=8 / N=1": against(many, one),
        "S=64 / recipe's S": against(dense, one),
        "recompute / forked": against(recompute, one),
        "peak memory ReFINE / SFT": one.peak_bytes / sft.peak_bytes,
    }
