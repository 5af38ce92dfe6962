"""From scored rows to a table: means per task, length and rule, with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from refine_pl.errors import DataError
from refine_pl.evaluation.bootstrap import Interval, average_interval, mean_interval
from refine_pl.evaluation.tasks import rule_of
from refine_pl.training.run_folder import ANSWERS, Average, Result, ScoreInterval, Scores

LONGBENCH = frozenset(
    (
        *("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "qmsum"),
        *("multi_news", "trec", "triviaqa", "samsum", "lcc", "repobench-p"),
    )
)
"""The twelve tasks that LongBench's average is taken over, or as many of them as there are."""


def summarize(
    lines: Iterable[Mapping[str, Any]], *, level: float = 0.95, resamples: int = 10_000
) -> Scores:
    """The numbers of the lines of ``answers.jsonl``.

    Args:
        lines: at least one; they have ``task``, ``length``, ``score`` and ``scores``.
        level: of the intervals.
        resamples: of the intervals.

    Raises:
        DataError: a line lacks one of these.
    """
    groups: dict[tuple[str, int | None, str], list[float]] = {}
    released: dict[str, list[float]] = {}
    for line in lines:
        try:
            task, score = line["task"], line["score"]
            for rule, value in {rule_of(task).name: score, **line["scores"]}.items():
                groups.setdefault((task, line["length"], rule), []).append(value)
        except KeyError as missing:
            raise DataError(
                f"the row {line.get('id')!r} has no {missing.args[0]}",
                where=ANSWERS,
                way_out="take its line out: the row is then answered again",
            ) from None
        released.setdefault(task, []).append(score)
    results = [
        Result(task, length, rule, *_numbers(mean_interval(v, level=level, resamples=resamples)))
        for (task, length, rule), v in groups.items()
    ]
    averages = []
    averaged = [values for task, values in released.items() if task in LONGBENCH]
    if len(averaged) > 1:
        interval = average_interval(averaged, level=level, resamples=resamples)
        averages.append(Average("LongBench", len(averaged), *_numbers(interval)))
    about = ScoreInterval(level, resamples, "percentile bootstrap over rows")
    rows = sum(map(len, released.values()))
    return Scores(rows, results, averages, about)


def table(scores: Scores) -> Table:
    """The numbers for people."""
    assert scores.interval is not None
    right = partial(Column, justify="right")
    with_lengths = any(result.length is not None for result in scores.results)
    lengths = [right("length")] if with_lengths else []
    numbers = map(right, ("rows", "score", f"{scores.interval.level:.0%} interval"))
    made = Table("task", *lengths, "rule", *numbers, box=SIMPLE_HEAD, pad_edge=False)
    for (task, length), results in groupby(scores.results, lambda r: (r.task, r.length)):
        names = [task, "-" if length is None else f"{length:,}"][: 1 + with_lengths]
        for result in results:
            made.add_row(*names, result.rule, *_cells(result))
            names = [""] * len(names)
    if scores.averages:
        made.add_section()
    for average in scores.averages:
        names = [f"{average.name} average", ""][: 1 + with_lengths]
        made.add_row(*names, f"{average.tasks} tasks", *_cells(average))
    return made


def _numbers(interval: Interval) -> tuple[int, float, float, float]:
    percent = interval.percent()
    return interval.num_rows, percent.mean, percent.low, percent.high


def _cells(result: Result | Average) -> tuple[str, str, str]:
    return f"{result.rows:,}", f"{result.mean:.1f}", f"{result.low:.1f} to {result.high:.1f}"
