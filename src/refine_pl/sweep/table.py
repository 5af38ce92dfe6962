"""The numbers of a sweep's runs side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from refine_pl.training.metrics import closing_names, format_value, title_of
from refine_pl.training.record_files import read_record
from refine_pl.training.run_folder import SCORES, SUMMARY, Scores, Summary, SweepEntry

SCORE = "score "  # before task and length, in the names of scores

Numbers = dict[str, float]


@dataclass(frozen=True, slots=True)
class Variant:
    """An overlay with the last numbers of its finished runs, by seed."""

    group: str
    overlay: str
    seeds: dict[int, Numbers] = field(default_factory=dict)

    def values(self, name: str) -> list[float]:
        """A number of each seed that has it."""
        return [numbers[name] for numbers in self.seeds.values() if name in numbers]


def variants(folder: Path, entries: Iterable[SweepEntry]) -> dict[str, Variant]:
    """The overlays of a sweep's entries by label, in their order.

    Raises:
        DataError: a file of a run is damaged.
    """
    found: dict[str, Variant] = {}
    for entry in entries:
        variant = found.setdefault(entry.label, Variant(entry.group, entry.overlay))
        numbers = last_numbers(folder / entry.run) if entry.status == "done" else {}
        if numbers:
            variant.seeds[entry.seed] = numbers
    return found


def results_table(folder: Path, entries: Sequence[SweepEntry]) -> Table:
    """One row for each overlay: last validation and test of its finished runs, mean and deviation.

    Args:
        folder: the sweep's.
        entries: those to show; the seeds of one overlay make one row.
    """
    rows = variants(folder, entries)
    for variant in rows.values():
        for numbers in variant.seeds.values():
            scores = [value for name, value in numbers.items() if name.startswith(SCORE)]
            numbers.update({"score": statistics.fmean(scores)} if scores else {})
    names = {name for row in rows.values() for run in row.seeds.values() for name in run}
    shown = [name for name in closing_names(names) if not name.startswith("val/reward_")]
    shown += ["score"] if "score" in names else []
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("overlay", no_wrap=True)
    table.add_column("seeds", justify="right")
    for name in shown:
        table.add_column(title(name), justify="right", no_wrap=True)
    for label, row in rows.items():
        cells = (" ".join(spread(name, row.values(name))) for name in shown)
        table.add_row(label, str(len(row.seeds)), *(cell.rstrip() for cell in cells))
    return table


def last_numbers(run: Path) -> Numbers:
    """The last validation of a run folder, and the scores of evaluations just below it, percent.

    Raises:
        DataError: a file is damaged.
    """
    found: Numbers = {}
    if (run / SUMMARY).is_file():
        validations = read_record(run / SUMMARY, Summary).validations
        found |= validations[-1].metrics if validations else {}
    for file in sorted(run.glob(f"*/{SCORES}")):
        for result in read_record(file, Scores).results:
            length = "" if result.length is None else f" {result.length:,}"
            found.setdefault(f"{SCORE}{result.task}{length}", result.mean)  # of the first rule
    return found


def title(name: str) -> str:
    """What a column is called."""
    return "test score, %" if name == "score" else title_of(name.removeprefix(SCORE))


def spread(name: str, values: Sequence[float]) -> tuple[str, str]:
    """The mean over seeds, and ``± standard deviation`` (n - 1) if there are several."""
    form = "{:.1f}".format if name.startswith("score") else lambda value: format_value(name, value)
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return "–", ""
    mean = form(statistics.fmean(values))
    return mean, f"± {form(statistics.stdev(values))}" if len(values) > 1 else ""
