"""From scored rows to a table: means per task, length and rule, with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from refine_pl.errors import DataError
from refine_pl.evaluation.bootstrap import Interval, average_interval, mean_interval
from refine_pl.evaluation.tasks import rule_of

SCORES = "scores.json"

LONGBENCH = (
    "narrativeqa",
    "qasper",
    "multifieldqa_en",
    "hotpotqa",
    "2wikimqa",
    "qmsum",
    "multi_news",
    "trec",
    "triviaqa",
    "samsum",
    "lcc",
    "repobench-p",
)
"""The twelve tasks that LongBench's average is taken over, or as many of them as there are."""


@dataclass(frozen=True, slots=True)
class Result:
    """The mean of one rule over the rows of one task and length, percent."""

    task: str
    length: int | None
    rule: str
    rows: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Average:
    """The mean of the means of several tasks, percent."""

    name: str
    tasks: int
    rows: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Summary:
    """All numbers of an evaluation."""

    rows: int
    results: tuple[Result, ...]  # the released rule of a task comes before its further ones
    averages: tuple[Average, ...]
    level: float
    resamples: int

    def as_json(self) -> dict[str, Any]:
        """What ``scores.json`` holds."""
        return {
            "rows": self.rows,
            "interval": {
                "level": self.level,
                "resamples": self.resamples,
                "method": "percentile bootstrap over rows",
            },
            "results": [asdict(result) for result in self.results],
            "averages": [asdict(average) for average in self.averages],
        }

    def table(self) -> Table:
        """The numbers for people."""
        lengths = any(result.length is not None for result in self.results)
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for title in ("task", *(["length"] if lengths else []), "rule"):
            table.add_column(title, justify="right" if title == "length" else "left")
        for title in ("rows", "score", f"{self.level:.0%} interval"):
            table.add_column(title, justify="right")
        shown = None
        for result in self.results:
            place = (result.task, result.length)
            first = place != shown
            shown = place
            length = "-" if result.length is None else f"{result.length:,}"
            names = [result.task if first else "", *([length if first else ""] if lengths else [])]
            table.add_row(*names, result.rule, f"{result.rows:,}", *_numbers(result))
        if self.averages:
            table.add_section()
        for average in self.averages:
            name = f"{average.name} average"
            middle = [""] if lengths else []
            table.add_row(
                name, *middle, f"{average.tasks} tasks", f"{average.rows:,}", *_numbers(average)
            )
        return table


def summarize(
    lines: Iterable[dict[str, Any]], *, level: float = 0.95, resamples: int = 10_000
) -> Summary:
    """The numbers of the lines of ``answers.jsonl``.

    Args:
        lines: at least one; they have ``task``, ``length``, ``score`` and ``scores``.
        level: of the intervals.
        resamples: of the intervals.

    Raises:
        DataError: a line lacks one of these.
    """
    groups: dict[tuple[str, int | None], dict[str, list[float]]] = {}
    rows = 0
    for line in lines:
        rows += 1
        missing = [key for key in ("task", "length", "score", "scores") if key not in line]
        if missing:
            raise DataError(
                f"the row {line.get('id')!r} has no {', '.join(missing)}",
                where="answers.jsonl",
                way_out="take its line out: the row is then answered again",
            )
        rules = groups.setdefault((line["task"], line["length"]), {})
        named = {rule_of(line["task"]).name: line["score"], **line["scores"]}
        for rule, value in named.items():
            rules.setdefault(rule, []).append(value)
    results = [
        Result(
            *place,
            rule,
            len(values),
            *_percent(mean_interval(values, level=level, resamples=resamples)),
        )
        for place, rules in groups.items()
        for rule, values in rules.items()
    ]
    averages = _averages(groups, level, resamples)
    return Summary(rows, tuple(results), tuple(averages), level, resamples)


def _averages(
    groups: dict[tuple[str, int | None], dict[str, list[float]]], level: float, resamples: int
) -> list[Average]:
    by_task: dict[str, list[float]] = {}
    for (task, _), rules in groups.items():
        if task in LONGBENCH:
            by_task.setdefault(task, []).extend(next(iter(rules.values())))
    if len(by_task) < 2:
        return []
    scores: Sequence[list[float]] = list(by_task.values())
    interval = average_interval(scores, level=level, resamples=resamples)
    return [Average("LongBench", len(scores), interval.num_rows, *_percent(interval))]


def _percent(interval: Interval) -> tuple[float, float, float]:
    percent = interval.percent()
    return percent.mean, percent.low, percent.high


def _numbers(result: Result | Average) -> tuple[str, str]:
    return f"{result.mean:.1f}", f"{result.low:.1f} to {result.high:.1f}"
