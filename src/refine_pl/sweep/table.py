"""The numbers of a sweep's runs side by side."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from refine_pl.sweep.index import Entry

# The metric of the last validation, what it is called here, factor and digits.
METRICS = (
    ("val/ntp_loss", "NTP loss, nats", 1, 4),
    ("val/accuracy", "accuracy, %", 100, 2),
    ("val/exact_match", "exact match, %", 100, 2),
    ("val/reward", "reward", 1, 4),
    ("score", "test score, %", 1, 1),  # mean over tasks and lengths
)


def results_table(folder: Path, entries: Sequence[Entry]) -> Table:
    """One row for each overlay: last validation and test of its finished runs, mean and deviation.

    Args:
        folder: the sweep's.
        entries: those to show; the seeds of one overlay make one row.
    """
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    for entry in entries:
        row = rows.setdefault((entry["group"], entry["overlay"]), [])
        if entry["status"] == "done":
            row.append(last_metrics(folder / entry["run"]))
            if entry.get("test", {}).get("status") == "done":
                row[-1] |= mean_score(folder / entry["test"]["folder"])
    names = {name for runs in rows.values() for run in runs for name in run}
    shown = [metric for metric in METRICS if metric[0] in names]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("overlay", no_wrap=True)
    table.add_column("seeds", justify="right")
    for _, title, _, _ in shown:
        table.add_column(title, justify="right", no_wrap=True)
    for (group, overlay), runs in rows.items():
        cells = [
            spread([run[name] * factor for run in runs if name in run], digits)
            for name, _, factor, digits in shown
        ]
        table.add_row(f"{group}/{overlay}", str(len(runs)), *cells)
    return table


def last_metrics(run: Path) -> dict[str, float]:
    """The numbers of a run's last validation; empty if it wrote no summary."""
    file = run / "summary.json"
    if not file.is_file():
        return {}
    validations = json.loads(file.read_text(encoding="utf-8"))["validations"]
    return dict(validations[-1]["metrics"]) if validations else {}


def mean_score(test: Path) -> dict[str, float]:
    """``score``, percent: the mean over tasks and lengths of a test, by each one's first rule."""
    file = test / "scores.json"
    if not file.is_file():
        return {}
    first: dict[tuple[str, int | None], float] = {}
    for result in json.loads(file.read_text(encoding="utf-8")).get("results", ()):
        first.setdefault((result["task"], result["length"]), result["mean"])
    return {"score": statistics.fmean(first.values())} if first else {}


def spread(values: Sequence[float], digits: int) -> str:
    """``mean ± standard deviation`` (unbiased), or the only value."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return "-"
    text = f"{statistics.fmean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text
