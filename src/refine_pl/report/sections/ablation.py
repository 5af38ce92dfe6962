"""The runs of a sweep side by side: a table for each group of overlays, lines over numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev

from refine_pl.figures.drawing import Picture
from refine_pl.figures.plots import Series, setting_figure
from refine_pl.figures.text import file_name, shortened
from refine_pl.report import paper
from refine_pl.report.page import Block, Cell, Details, Gallery, Heading, Note, Row, Table
from refine_pl.report.reading import Run
from refine_pl.sweep.overlays import BASE
from refine_pl.sweep.table import SCORE, Numbers, last_numbers, spread, title
from refine_pl.training.metrics import closing_names
from refine_pl.training.run_folder import SweepEntry, SweepIndex

_FIGURES = 4  # metrics of a group that get a figure
_SETTING = re.compile(r"(?:^|[_\-/= ])(\d+(?:\.\d+)?)(?:\.yaml)?$")


@dataclass(frozen=True, slots=True)
class Variant:
    """One overlay with the last numbers of its seeds."""

    overlay: str
    group: str
    seeds: list[Numbers]

    @property
    def number(self) -> float | None:
        """The setting, where the overlay is named after one: 5 for rollout_length_5."""
        found = None if self.group == BASE else _SETTING.search(self.overlay)
        return float(found[1]) if found else None

    def values(self, name: str) -> list[float]:
        """A number of each seed that has it."""
        return [seed[name] for seed in self.seeds if name in seed]


def ablations(runs: Sequence[Run]) -> Iterator[Block]:
    """Each sweep: what did not finish, a table for each group, what each overlay changes."""
    sweeps = [(run, run.sweep) for run in runs if run.sweep]
    for run, sweep in sweeps:
        if len(sweeps) > 1:
            yield Heading(run.label, run.index)
        yield from _sweep(run, sweep)


def _sweep(run: Run, sweep: SweepIndex) -> Iterator[Block]:
    recipe = ", ".join(sweep.base.configs)
    seeds = ", ".join(map(str, sorted({entry.seed for entry in sweep.entries})))
    yield (
        f"{f'Overlays on {recipe}, ' if recipe else ''}seeds {seeds}. Numbers of the last "
        "validation of each run: mean over the seeds ± their standard deviation (n - 1)."
    )
    variants: dict[tuple[str, str], Variant] = {}
    for entry in sweep.entries:
        key = entry.group, entry.overlay
        variant = variants.setdefault(key, Variant(entry.overlay, entry.group, []))
        numbers = last_numbers(run.folder / entry.run) if entry.status == "done" else {}
        if numbers:
            variant.seeds.append(numbers)
        else:
            yield Note(_missing(run, entry))
    groups = list(dict.fromkeys(entry.group for entry in sweep.entries))
    for group in [group for group in groups if group != BASE] or groups:
        yield Heading(group)
        found = [variant for variant in variants.values() if variant.seeds]
        if any(variant.group == group for variant in found):
            yield from _group(run, group, [v for v in found if v.group in (BASE, group)])
        else:
            yield Note("No run has finished.")
    if sweep.overlays:
        rows = [
            [f"{overlay.group}/{overlay.overlay}", key, shortened(str(value), 120)]
            for overlay in sweep.overlays
            for key, value in overlay.changes.items()
        ]
        table = Table(["overlay", "setting", "value"], rows, text_columns=3)
        yield Details("What each overlay changes", [table])


def _missing(run: Run, entry: SweepEntry) -> str:
    name = f"{entry.group}/{entry.overlay}, seed {entry.seed}"
    if entry.status == "done":
        return f"{name}: done, but no numbers in {run.folder / entry.run}."
    return f"{name}: {entry.status}; not in the tables. {entry.error or ''}".strip()


def _group(run: Run, group: str, variants: Sequence[Variant]) -> Iterator[Block]:
    # The recipe first, numbers in their order; sorting keeps the order of everything else.
    variants = sorted(variants, key=lambda v: (v.group != BASE, v.number or 0.0))
    there = {name for variant in variants for seed in variant.seeds for name in seed}
    names = sorted(name for name in there if name.startswith(SCORE)) + closing_names(there)
    rows: list[Row] = []
    for variant in variants:
        recipe = " (recipe as it is)" if variant.group != group else ""
        cells = (Cell(*spread(name, variant.values(name))) for name in names)
        rows.append([variant.overlay + recipe, str(len(variant.seeds)), *cells])
    yield Table(["overlay", "seeds", *map(title, names)], rows)
    numbered = [variant for variant in variants if variant.number is not None]
    pictures = [_picture(run, group, name, numbered) for name in names]
    drawn = [picture for picture in pictures if picture][:_FIGURES]
    if drawn:
        yield Gallery(drawn)
    yield from _of_the_paper(group)


def _picture(run: Run, group: str, name: str, variants: Sequence[Variant]) -> Picture | None:
    there = [variant for variant in variants if variant.values(name)]
    if len(there) < 2:
        return None
    values = [variant.values(name) for variant in there]
    line = Series(
        run.index,
        run.label,
        [variant.number or 0.0 for variant in there],
        [fmean(seeds) for seeds in values],
        [stdev(seeds) if len(seeds) > 1 else 0.0 for seeds in values],
    )
    setting = group.replace("_", " ")
    draw = partial(setting_figure, title=title(name), setting=setting, line=line)
    file = f"ablation_{run.index}_{file_name(group)}_{file_name(name)}"
    return Picture(file, f"{title(name)} over {group}", draw)


def _of_the_paper(group: str) -> Iterator[Block]:
    if group == "rollout_length":
        yield f"{paper.BEST_ROLLOUT_LENGTH} ({paper.SOURCE})"
    rows = [
        [setting, *(f"{value:.1f}" for value in values)]
        for setting, values in paper.ABLATIONS.get(group, {}).items()
    ]
    if rows:
        caption = f"{paper.SOURCE}: LongBench average after mid-training, percent; copied, not run."
        yield Table(["the paper", *paper.ABLATION_MODELS], rows, caption)
