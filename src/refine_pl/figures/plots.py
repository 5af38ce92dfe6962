"""The figures: curves, distributions, entropy maps, intervals, and lines over a setting.

Each gives its axes; its colours are those of the theme, all else is the style it is drawn in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from refine_pl.figures.drawing import LINES, Theme, legend, new_axes
from refine_pl.figures.text import shortened
from refine_pl.training.run_folder import EntropyMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAME = 34  # characters of a run's name in a legend
_RUNNING_MEAN_FROM = 60  # points


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a figure. ``K`` points."""

    run: int  # which run, for its colour
    label: str
    x: Sequence[float]  # K, ascending
    y: Sequence[float]  # K
    spread: Sequence[float] | None = None  # K, half the height of a band around it


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with its interval, in a row of a figure."""

    row: int  # from the top
    run: int | None  # whose colour it has; None: that of the text
    label: str
    middle: float
    low: float
    high: float


def entropy_figure(theme: Theme, data: EntropyMap, dpi: int = 100, run: int = 0) -> Axes:
    """Entropy along a document, raw and smoothed, with segment borders and chosen positions."""
    axes = new_axes(10, 3, dpi)
    axes.grid(visible=False)
    axes.plot(data.entropy, color=theme.muted, linewidth=0.6, label="entropy")
    axes.plot(data.smoothed, color=theme.run(run), linewidth=0.9, label="smoothed")
    for border in data.borders:
        axes.axvline(border, color=theme.muted, linestyle=":", linewidth=0.8)
    heights = [data.smoothed[token] for token in data.scored]
    axes.plot(data.scored, heights, "v", color=theme.mark, markersize=6, label="chosen position")
    top = max(finite(data.entropy).max(initial=0.0), 0.1) * 1.2  # room for the legend
    axes.set(xlim=(0, max(len(data.entropy) - 1, 1)), ylim=(0, top), xlabel="token", ylabel="nats")
    axes.set_title(f"{shortened(data.document, 80)}, iteration {data.iteration}")
    legend(axes, loc="upper right", ncols=3)
    return axes


def curve_figure(
    theme: Theme,
    title: str,
    unit: str,
    series: Sequence[Series],
    marks: Sequence[float] = (),
    points: bool = False,
    exact: bool = False,
) -> Axes:
    """A metric over iterations, one line for each run.

    From 60 points on the line is a running mean over a thirtieth of the run, in front of the raw
    values.

    Args:
        theme: colours.
        title: what is shown.
        unit: of the values.
        series: the lines.
        marks: iterations where something changed, as dotted lines.
        points: whether every value is a point that matters, as for validations.
        exact: whether the values are drawn as they are, without a running mean.
    """
    axes = new_axes(4.3, 2.7)
    for mark in marks:
        axes.axvline(mark, color=theme.muted, linestyle=":", linewidth=0.9)
    for line in series:
        _draw(axes, theme, line, points, smooth=not (exact or points))
    axes.set(title=title, xlabel="iteration", ylabel=unit)
    legend(axes, loc="best")  # of a single run too: the figure may be shown alone
    return axes


def _draw(axes: Axes, theme: Theme, line: Series, points: bool, smooth: bool) -> None:
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    colour, style = theme.run(line.run), LINES[line.run // len(theme.runs) % len(LINES)]
    if line.spread is not None:
        half = np.asarray(line.spread, float)
        axes.fill_between(x, y - half, y + half, color=colour, alpha=0.14, linewidth=0)
    name = " " + shortened(line.label, _NAME)  # a label that starts with _ would be left out
    if smooth and len(y) >= _RUNNING_MEAN_FROM:
        axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.35)
        y = running_mean(y, len(y) // 30)
    marker = "o" if points or len(y) <= 3 else None
    axes.plot(x, y, style, color=colour, linewidth=1.4, marker=marker, markersize=3.5, label=name)


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over a centred window of ``width`` (one more if even); values that are no number count
    as missing.

    Args:
        values: ``[K]``.
        width: points, at least 1.
    """
    half = width // 2
    known = np.isfinite(values)
    window = np.ones(2 * half + 1)
    total = np.convolve(np.where(known, values, 0.0), window, mode="full")
    count = np.convolve(known.astype(float), window, mode="full")
    end = half + len(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total[half:end] / count[half:end])


def histogram_figure(
    theme: Theme, title: str, early: Sequence[float], late: Sequence[float], run: int
) -> Axes:
    """How often each reward came: the first third of the recorded iterations and the last.

    Shares and not counts: the thirds may hold unequal numbers of rollouts.
    """
    axes = new_axes(4.3, 2.4)
    first, last = finite(early), finite(late)
    both = np.concatenate([first, last])
    low, high = (float(both.min()), float(both.max())) if len(both) else (0.0, 1.0)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, 21)
    for values, colour, name, filled in (
        (first, theme.muted, f"first third ({len(first)})", True),
        (last, theme.run(run), f"last third ({len(last)})", False),
    ):
        if len(values):
            share = np.histogram(values, edges)[0] / len(values)
            options: dict[str, Any] = {"fill": True, "alpha": 0.8} if filled else {"linewidth": 1.6}
            axes.stairs(share, edges, color=colour, label=name, **options)
    axes.set_ylim(bottom=0)
    axes.set(title=title, xlabel="reward of a rollout", ylabel="share")
    legend(axes, loc="best")
    return axes


def interval_figure(
    theme: Theme, rows: Sequence[str], intervals: Sequence[Interval], x: str, zero: bool
) -> Axes:
    """Points with intervals, one row for each task and length.

    Args:
        theme: colours.
        rows: their names, from the top.
        intervals: what to draw; several of a row are drawn below each other.
        x: what the numbers are.
        zero: whether a line is drawn at 0.
    """
    runs = list(dict.fromkeys(interval.run for interval in intervals))
    step = 0.7 / max(len(runs), 1)
    axes = new_axes(8.4, 0.8 + len(rows) * (0.14 + 0.1 * len(runs)))
    axes.grid(visible=False, axis="y")
    if zero:
        axes.axvline(0, color=theme.text, linewidth=0.8)
    named: set[int | None] = set()
    for interval in intervals:
        place = interval.row + (runs.index(interval.run) - (len(runs) - 1) / 2) * step
        colour = theme.text if interval.run is None else theme.run(interval.run)
        axes.plot([interval.low, interval.high], [place, place], color=colour, linewidth=1.6)
        name = None if interval.run in named else " " + shortened(interval.label, _NAME)
        axes.plot([interval.middle], [place], "o", color=colour, markersize=4.5, label=name)
        named.add(interval.run)
    axes.set_yticks(range(len(rows)), [shortened(row, 48) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    low, high = min(i.low for i in intervals), max(i.high for i in intervals)
    if zero:
        low, high = min(low, 0), max(high, 0)
    margin = max((high - low) / 20, 1)  # scores may all be equal
    axes.set_xlim(low - margin if zero else max(low - margin, -0.5), high + margin)
    axes.set_xlabel(x)
    if runs != [None]:  # a difference, which the x-axis names
        legend(axes, loc="best")
    return axes


def setting_figure(theme: Theme, title: str, setting: str, line: Series) -> Axes:
    """A metric over the values of a setting; the bars are one standard deviation over seeds."""
    axes = new_axes(4.3, 2.7)
    style: dict[str, Any] = {"marker": "o", "markersize": 4, "capsize": 3}
    axes.errorbar(line.x, line.y, yerr=line.spread, color=theme.run(line.run), **style)
    axes.set_xticks(line.x, [f"{value:g}" for value in line.x])
    axes.set(title=title, xlabel=setting)
    return axes


def finite(values: Sequence[float]) -> np.ndarray:
    """Those that are numbers: ``[at most K]`` float64."""
    array = np.asarray(values, float)
    return array[np.isfinite(array)]
