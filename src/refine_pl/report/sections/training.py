"""Validation tables and curves of training runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from refine_pl.figures.drawing import Picture
from refine_pl.figures.plots import Series, curve_figure
from refine_pl.figures.text import file_name
from refine_pl.report.page import Block, Cell, Gallery, Heading, Row, Table
from refine_pl.report.reading import Run, of_each
from refine_pl.report.scalars import Scalars
from refine_pl.training.metrics import (
    GROUPS,
    STAGE,
    closing_names,
    format_value,
    metric_of,
    title_of,
)
from refine_pl.training.run_folder import Validation

_STILL = 1e-4  # a curve that moves less has not changed


def validations(runs: Sequence[Run]) -> Iterator[Block]:
    """Before and after for each run, then the last numbers side by side."""
    some = [run for run in runs if run.summary.validations]
    yield from of_each(some, _at_borders)
    if len(some) > 1:
        last = [run.summary.validations[-1] for run in some]
        heads = [Cell(run.label, v.name, run.index) for run, v in zip(some, last, strict=True)]
        yield Heading("The last validation of each run")
        yield _held_out(last, heads)
        yield (
            "One number for each run: these say nothing about chance. Train several seeds before a "
            "difference is read as one of the settings."
        )


def _at_borders(run: Run) -> Iterator[Block]:
    columns = run.summary.at_borders()
    yield _held_out(columns, [validation.name for validation in columns])


def _held_out(columns: Sequence[Validation], heads: Row) -> Table:
    there = {name for column in columns for name in column.metrics}
    known = closing_names(there)
    others = sorted(name for name in there.difference(known) if "val/reward_" not in name)
    rows = [
        [title_of(name), *(format_value(name, column.metrics.get(name)) for column in columns)]
        for name in [*known, *others]
    ]
    return Table(["held out", *heads], rows)


def curves(runs: Sequence[Run]) -> Iterator[Block]:
    """One figure for each scalar, all runs in it."""
    some = [run for run in runs if run.scalars.curves]
    if not some:
        return
    yield (
        "The x-axis counts finished iterations. From 60 values on a line is a running mean over a "
        "thirtieth of the run, in front of the values themselves. Dotted: where a stage begins. "
        "Band: one standard deviation over the rollouts of an iteration; of a single run only."
    )
    scalars = sorted({name for run in some for name in run.scalars.curves})
    for title, metrics in GROUPS.items():
        shown = [metric for metric in metrics if metric.curve]
        names = [name for metric in shown for name in scalars if metric_of(name) is metric]
        yield from _figures(title, [name for name in names if not _is_still(name, some)], some)
    yield from _figures("Other", [name for name in scalars if metric_of(name) is None], some)
    still = {name: some[0].scalars.last(name) for name in scalars if _is_still(name, some)}
    if still:
        values = ", ".join(f"{name} {format_value(name, value)}" for name, value in still.items())
        yield f"Without change, and not drawn: {values}."


def stage_borders(scalars: Scalars) -> list[float]:
    """Iterations between the last of a stage and the first of the next."""
    steps, values = scalars.curves.get(STAGE, ([], []))
    pairs = zip(steps, values, steps[1:], values[1:], strict=False)
    return [(step + after) / 2 for step, value, after, next_ in pairs if next_ != value]


def _is_still(name: str, some: Sequence[Run]) -> bool:
    metric = metric_of(name)
    if metric is None or not metric.if_changing:
        return False
    values = [value for run in some for value in run.scalars.curves.get(name, ([], []))[1]]
    return max(values) - min(values) < _STILL


def _figures(title: str, names: Sequence[str], some: Sequence[Run]) -> Iterator[Block]:
    if names:
        yield Heading(title)
        yield Gallery([_curve(name, some) for name in names])


def _curve(name: str, some: Sequence[Run]) -> Picture:
    metric = metric_of(name)
    having = [run for run in some if name in run.scalars.curves]
    series = []
    for run in having:
        steps, values = run.scalars.curves[name]
        spread = None
        if metric and metric.spread and len(some) == 1:  # several bands cannot be told apart
            other = run.scalars.curves.get(name.removesuffix("mean") + "std", ([], []))
            spread = other[1] if other[0] == steps else None
        series.append(Series(run.index, run.label, steps, values, spread))
    options = {
        "title": name,
        "unit": metric.unit if metric else "",
        "series": series,
        "marks": sorted({mark for run in having for mark in stage_borders(run.scalars)}),
        "points": name.startswith("val/"),
        "exact": metric is not None and metric.exact,
    }
    alt = f"{name}: {metric.title}" if metric else name
    return Picture("curve_" + file_name(name), alt, curve_figure, options)
