"""Validation tables and curves of training runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from refine_pl.report.drawing import Picture
from refine_pl.report.figures import Series, curve_figure
from refine_pl.report.metrics import (
    CURVES,
    ONLY_WHEN_CHANGING,
    PHASE,
    Metric,
    metric_of,
    shown,
    title_of,
)
from refine_pl.report.page import Block, Cell, Gallery, Heading, Paragraph, Section, Table
from refine_pl.report.runs import Run
from refine_pl.report.text import file_name
from refine_pl.report.training import Training, Validation


def validation_section(runs: Sequence[Run]) -> Section | None:
    """Before and after for each run, then the last numbers side by side."""
    some = with_training(runs, lambda training: bool(training.validations))
    if not some:
        return None
    blocks: list[Block] = []
    for run, training in some:
        columns = named(training.validations)
        if len(some) > 1:
            blocks.append(Heading(run.label, run.index))
        rows = [
            [title_of(name), *(shown(name, v.metrics.get(name)) for v in columns)]
            for name in _names(columns)
        ]
        blocks.append(Table(["held out", *(v.name for v in columns)], rows))
    if len(some) > 1:
        last = [training.validations[-1] for _, training in some]
        rows = [
            [title_of(name), *(shown(name, v.metrics.get(name)) for v in last)]
            for name in _names(last)
        ]
        heads = [Cell(run.label, v.name, run.index) for (run, _), v in zip(some, last, strict=True)]
        blocks.append(Heading("The last validation of each run"))
        blocks.append(Table(["held out", *heads], rows))
        blocks.append(
            Paragraph(
                "One number for each run: these say nothing about chance. Train several seeds "
                "before a difference is read as one of the settings."
            )
        )
    return Section("Validation", blocks)


def named(validations: Sequence[Validation]) -> list[Validation]:
    """Those at the borders of phases, or the first and the last if none has a name."""
    return [v for v in validations if v.label] or [validations[0], *validations[1:][-1:]]


def curves_section(runs: Sequence[Run]) -> Section | None:
    """One figure for each scalar, all runs in it."""
    some = with_training(runs, lambda training: bool(training.scalars.curves))
    if not some:
        return None
    scalars = sorted({name for _, training in some for name in training.scalars.curves})
    blocks: list[Block] = [
        Paragraph(
            "The x-axis counts finished iterations. From 60 values on a line is a running mean "
            "over a thirtieth of the run, in front of the values themselves. Dotted: where a "
            "phase begins. Band: one standard deviation over the rollouts of an iteration; of a "
            "single run only."
        )
    ]
    for title, metrics in CURVES.items():
        names = [name for metric in metrics for name in scalars if metric_of(name) is metric]
        still = [name for name in names if _is_still(name, some)]
        pictures = [_curve(name, some) for name in names if name not in still]
        if pictures:
            blocks += [Heading(title), Gallery(pictures)]
        if still:
            values = {name: some[0][1].scalars.last(name) for name in still}
            text = ", ".join(f"{name} {shown(name, value)}" for name, value in values.items())
            blocks.append(Paragraph(f"Without change, and not drawn: {text}."))
    other = [_curve(name, some) for name in scalars if metric_of(name) is None]
    if other:
        blocks += [Heading("Other"), Gallery(other)]
    return Section("Curves", blocks)


def phase_borders(training: Training) -> list[float]:
    """Iterations between the last of a phase and the first of the next."""
    steps, values = training.scalars.curves.get(PHASE, ([], []))
    pairs = zip(steps, values, steps[1:], values[1:], strict=False)
    return [(step + after) / 2 for step, value, after, next_ in pairs if next_ != value]


def _names(validations: Sequence[Validation]) -> list[str]:
    """Scalars of validations, in the order of the report."""
    there = {name for v in validations for name in v.metrics}
    ordered = [n for m in CURVES["Validation"] for n in sorted(there) if metric_of(n) is m]
    parts = [name for name in ordered if name.startswith("val/reward_")]
    if len(parts) == 1:  # the same as their sum
        ordered.remove(parts[0])
    return ordered + sorted(there.difference(ordered, parts))


def _is_still(name: str, some: Sequence[tuple[Run, Training]]) -> bool:
    values = [v for _, t in some for v in t.scalars.curves.get(name, ([], []))[1]]
    if name not in ONLY_WHEN_CHANGING:
        return False
    return max(values) - min(values) < 1e-4


def _curve(name: str, some: Sequence[tuple[Run, Training]]) -> Picture:
    metric = metric_of(name) or Metric(name, name)
    series = []
    marks: set[float] = set()
    for run, training in some:
        steps, values = training.scalars.curves.get(name, ([], []))
        spread = None
        if metric.spread and len(some) == 1:  # several bands cannot be told apart
            other = training.scalars.curves.get(name.removesuffix("mean") + "std", ([], []))
            spread = other[1] if other[0] == steps else None
        if steps:
            series.append(Series(run.index, run.label, steps, values, spread))
            marks |= {*phase_borders(training)}
    draw = partial(
        curve_figure,
        title=name,
        unit=metric.unit,
        series=series,
        marks=sorted(marks),
        points=name.startswith("val/"),
        exact=metric.exact,
    )
    return Picture("curve_" + file_name(name), f"{name}: {metric.title}", draw)


def with_training(
    runs: Sequence[Run], condition: Callable[[Training], bool]
) -> list[tuple[Run, Training]]:
    """The training runs that have something."""
    return [(run, run.training) for run in runs if run.training and condition(run.training)]
