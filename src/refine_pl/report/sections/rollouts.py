"""Reward distributions, entropy maps and rollouts of training runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypeVar

from refine_pl.report.drawing import Picture
from refine_pl.report.figures import entropy_figure, histogram_figure
from refine_pl.report.page import (
    Block,
    Details,
    Gallery,
    Heading,
    Note,
    Paragraph,
    Sample,
    Section,
    ShownRollout,
)
from refine_pl.report.runs import Run
from refine_pl.report.sections.training import with_training
from refine_pl.report.text import file_name
from refine_pl.report.training import Position, Training

_MAPS = 3  # entropy maps of a run
_SAMPLES = 3  # positions of an iteration
_ROLLOUTS = 4  # of a position

T = TypeVar("T")


def rewards_section(runs: Sequence[Run]) -> Section | None:
    """How the rewards of the recorded rollouts are spread, early and late."""
    some = with_training(runs, lambda training: bool(training.positions))
    if not some:
        return None
    blocks: list[Block] = [
        Paragraph(
            "All rollouts in rollouts.jsonl: a sample of those that the run was trained on. The "
            "first third of the recorded iterations against the last."
        )
    ]
    for run, training in some:
        iterations = sorted({p.iteration for p in training.positions})
        if len(some) > 1:
            blocks.append(Heading(run.label, run.index))
        if len(iterations) < 2:
            blocks.append(Note(f"{run.label}: one recorded iteration only; nothing to compare."))
        blocks.append(Gallery(_histograms(run, training, iterations)))
    return Section("Reward distributions", blocks)


def entropy_section(runs: Sequence[Run]) -> Section | None:
    """Some maps of each run: the first, the last, and some between."""
    some = with_training(runs, lambda training: bool(training.entropy))
    if not some:
        return None
    blocks: list[Block] = [
        Paragraph(
            "Entropy of the next token along a document, as the selector saw it. Triangles: the "
            "tokens whose smoothed entropy was scored where rollouts started. Dotted: borders of "
            "segments."
        )
    ]
    for run, training in some:
        if len(some) > 1:
            blocks.append(Heading(run.label, run.index))
        by_iteration = {m.iteration: m for m in reversed(training.entropy)}  # the first of each
        pictures = [
            Picture(
                f"entropy_{run.index}_{iteration}",
                f"Entropy along {by_iteration[iteration].document} in iteration {iteration}",
                partial(entropy_figure, by_iteration[iteration], dpi=150, run=run.index),
                wide=True,
            )
            for iteration in spaced(sorted(by_iteration), _MAPS)
        ]
        blocks.append(Gallery(pictures))
    return Section("Entropy maps", blocks)


def rollouts_section(runs: Sequence[Run]) -> Section | None:
    """Some positions of the first and of the last recorded iteration, with their rollouts."""
    some = with_training(runs, lambda training: bool(training.positions))
    if not some:
        return None
    blocks: list[Block] = [
        Paragraph(
            "Positions at even distances, not chosen by hand. Grey: the end of the prefix. The "
            "target is the true continuation. Line ends are shown as ⏎, tabs as ⇥."
        )
    ]
    for run, training in some:
        iterations = sorted({p.iteration for p in training.positions})
        for iteration in dict.fromkeys((iterations[-1], iterations[0])):
            rows = [p for p in training.positions if p.iteration == iteration]
            samples = [_sample(row) for row in spaced(rows, _SAMPLES)]
            name = f"{run.label}, iteration {iteration}"
            if iteration == iterations[-1]:
                blocks += [Heading(name, run.index), *samples]
            else:
                blocks.append(Details(name, samples))
    return Section("Rollouts", blocks)


def spaced(items: Sequence[T], number: int) -> list[T]:
    """At most ``number`` of the items: the first, the last, and others at even distances."""
    if len(items) <= number:
        return list(items)
    last = len(items) - 1
    return [items[round(i * last / (number - 1))] for i in range(number)]


def _histograms(run: Run, training: Training, iterations: Sequence[int]) -> list[Picture]:
    third = max(len(iterations) // 3, 1)
    early, late = set(iterations[:third]), set(iterations[-third:])
    if early & late:
        early = set()
    names = dict.fromkeys(n for p in training.positions for r in p.rollouts for n in r.parts)
    pictures = []
    for name in [None, *names] if len(names) > 1 else names or [None]:
        first, last = (
            [
                rollout.reward if name is None else rollout.parts[name]
                for position in training.positions
                if position.iteration in some
                for rollout in position.rollouts
                if name is None or name in rollout.parts
            ]
            for some in (early, late)
        )
        title = "weighted sum" if name is None else f"{name}, before its weight"
        draw = partial(histogram_figure, title=title, early=first, late=last, run=run.index)
        file = f"rewards_{run.index}_{file_name(name or 'sum')}"
        pictures.append(Picture(file, f"Distribution of the rewards: {title}", draw))
    return pictures


def _sample(row: Position) -> Sample:
    names = list(dict.fromkeys(name for r in row.rollouts for name in r.parts))
    rollouts = [
        ShownRollout(
            r.text, r.reward, [r.parts.get(name, float("nan")) for name in names], r.advantage
        )
        for r in row.rollouts[:_ROLLOUTS]
    ]
    more = len(row.rollouts) - len(rollouts)
    title = f"{row.document}, position {row.position:,}"
    title += f" ({more} more rollouts)" if more > 0 else ""
    return Sample(title, row.prefix, row.target, names, rollouts)
