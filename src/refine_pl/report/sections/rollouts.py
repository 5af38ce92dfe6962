"""Reward distributions, entropy maps and rollouts of training runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import nan
from typing import TypeVar

from refine_pl.figures.drawing import Picture
from refine_pl.figures.plots import entropy_figure, histogram_figure
from refine_pl.figures.text import file_name, visible
from refine_pl.report.page import Block, Cell, Details, Gallery, Heading, Note, Row, Table
from refine_pl.report.reading import Run, of_each
from refine_pl.training.run_folder import Position

_MAPS = 3  # entropy maps of a run
_SAMPLES = 3  # positions of an iteration
_ROLLOUTS = 4  # of a position

T = TypeVar("T")


def reward_distributions(runs: Sequence[Run]) -> Iterator[Block]:
    """How the rewards of the recorded rollouts are spread, early and late."""
    intro = (
        "All rollouts in rollouts.jsonl: a sample of those that the run was trained on. The first "
        "third of the recorded iterations against the last."
    )
    yield from of_each([run for run in runs if run.positions], _distribution, intro)


def _distribution(run: Run) -> Iterator[Block]:
    iterations = _iterations(run)
    if len(iterations) < 2:
        yield Note(f"{run.label}: one recorded iteration only; nothing to compare.")
    yield Gallery(list(_histograms(run, iterations)))


def entropy_maps(runs: Sequence[Run]) -> Iterator[Block]:
    """Some maps of each run: the first, the last, and some between."""
    intro = (
        "Entropy of the next token along a document, as the selector saw it. Triangles: the tokens "
        "whose smoothed entropy was scored where rollouts started. Dotted: borders of segments."
    )
    yield from of_each([run for run in runs if run.entropy], _maps, intro)


def _maps(run: Run) -> Iterator[Block]:
    first = {found.iteration: found for found in reversed(run.entropy)}  # of each iteration
    yield Gallery(
        [
            Picture(
                f"entropy_{run.index}_{found.iteration}",
                f"Entropy along {found.document} in iteration {found.iteration}",
                entropy_figure,
                {"data": found, "dpi": 150, "run": run.index},
                wide=True,
            )
            for found in spaced([first[iteration] for iteration in sorted(first)], _MAPS)
        ]
    )


def rollouts(runs: Sequence[Run]) -> Iterator[Block]:
    """Some positions of the first and of the last recorded iteration, with their rollouts."""
    some = [run for run in runs if run.positions]
    if some:
        yield (
            "Positions at even distances, not chosen by hand. Grey: the end of the prefix. The "
            "target is the true continuation. Line ends are shown as ⏎, tabs as ⇥."
        )
    for run in some:
        iterations = _iterations(run)
        last = iterations[-1]
        for iteration in dict.fromkeys((last, iterations[0])):
            rows = [position for position in run.positions if position.iteration == iteration]
            samples = [_sample(row) for row in spaced(rows, _SAMPLES)]
            name = f"{run.label}, iteration {iteration}"
            if iteration == last:
                yield Heading(name, run.index)
                yield from samples
            else:
                yield Details(name, samples)


def spaced(items: Sequence[T], number: int) -> list[T]:
    """At most ``number`` of the items: the first, the last, and others at even distances."""
    if len(items) <= number:
        return list(items)
    last = len(items) - 1
    return [items[round(i * last / (number - 1))] for i in range(number)]


def _iterations(run: Run) -> list[int]:
    return sorted({position.iteration for position in run.positions})


def _histograms(run: Run, iterations: Sequence[int]) -> Iterator[Picture]:
    third = max(len(iterations) // 3, 1)
    late = set(iterations[-third:])
    early = set() if late.intersection(iterations[:third]) else set(iterations[:third])

    def drawn(some: set[int], part: str) -> list[float]:
        rollouts = [r for p in run.positions if p.iteration in some for r in p.rollouts]
        return [r.parts.get(part, nan) if part else r.reward for r in rollouts]

    parts = list(dict.fromkeys(n for p in run.positions for r in p.rollouts for n in r.parts))
    for part in parts if len(parts) == 1 else ["", *parts]:  # one reward alone is the sum
        title = f"{part}, before its weight" if part else "weighted sum"
        file = f"rewards_{run.index}" + (f"_{file_name(part)}" if part else "")
        options = {"title": title, "early": drawn(early, part), "late": drawn(late, part)}
        alt = f"Distribution of the rewards: {title}"
        yield Picture(file, alt, histogram_figure, options | {"run": run.index})


def _sample(row: Position) -> Table:
    names = list(dict.fromkeys(name for rollout in row.rollouts for name in rollout.parts))
    target = Cell(visible(row.target), "target", before=f"…{visible(row.prefix)}", tone="true")
    rows: list[Row] = [[target, *[""] * (len(names) + 2)]]
    for rollout in row.rollouts[:_ROLLOUTS]:
        numbers = [rollout.reward, *(rollout.parts.get(name, float("nan")) for name in names)]
        gain = rollout.advantage
        tone = "better" if gain > 0 else "worse" if gain < 0 else ""
        text, advantage = Cell(visible(rollout.text), tone="drawn"), Cell(f"{gain:+.2f}", tone=tone)
        rows.append([text, *(f"{number:.3f}" for number in numbers), advantage])
    more = len(row.rollouts) - _ROLLOUTS
    title = f"{row.document}, position {row.position:,}"
    title += f" ({more} more rollouts)" if more > 0 else ""
    return Table(["text", "reward", *names, "advantage"], rows, title=title)
