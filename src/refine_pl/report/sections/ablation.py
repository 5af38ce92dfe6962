"""The runs of a sweep side by side: a table for each group of overlays, lines over numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev

from refine_pl.figures.drawing import Picture
from refine_pl.figures.plots import Series, setting_figure
from refine_pl.figures.text import file_name, shortened
from refine_pl.report import paper
from refine_pl.report.page import Block, Cell, Details, Gallery, Heading, Note, Row, Table
from refine_pl.report.reading import Run, of_each
from refine_pl.sweep.overlays import BASE
from refine_pl.sweep.table import SCORE, Variant, spread, title, variants
from refine_pl.training.metrics import closing_names
from refine_pl.training.run_folder import SweepEntry

_FIGURES = 4  # metrics of a group that get a figure
_SETTING = re.compile(r"(?:^|[_\-/= ])(\d+(?:\.\d+)?)(?:\.yaml)?$")


def ablations(runs: Sequence[Run]) -> Iterator[Block]:
    """Each sweep: what did not finish, a table for each group, what each overlay changes."""
    yield from of_each([run for run in runs if run.sweep], _sweep)


def _sweep(run: Run) -> Iterator[Block]:
    sweep = run.sweep
    assert sweep is not None
    recipe = ", ".join(sweep.base.configs)
    seeds = ", ".join(map(str, sorted({entry.seed for entry in sweep.entries})))
    yield (
        f"{f'Overlays on {recipe}, ' if recipe else ''}seeds {seeds}. Numbers of the last "
        "validation of each run: mean over the seeds ± their standard deviation (n - 1)."
    )
    found = variants(run.folder, sweep.entries)
    for entry in sweep.entries:
        if entry.seed not in found[entry.label].seeds:
            yield Note(_missing(run, entry))
    there = [variant for variant in found.values() if variant.seeds]
    groups = list(dict.fromkeys(entry.group for entry in sweep.entries))
    for group in [group for group in groups if group != BASE] or groups:
        yield Heading(group)
        if any(variant.group == group for variant in there):
            yield from _group(run, group, [v for v in there if v.group in (BASE, group)])
        else:
            yield Note("No run has finished.")
    if sweep.overlays:
        rows = [
            [overlay.label, key, shortened(str(value), 120)]
            for overlay in sweep.overlays
            for key, value in overlay.changes.items()
        ]
        table = Table(["overlay", "setting", "value"], rows, text_columns=3)
        yield Details("What each overlay changes", [table])


def _missing(run: Run, entry: SweepEntry) -> str:
    name = f"{entry.label}, seed {entry.seed}"
    if entry.status == "done":
        return f"{name}: done, but no numbers in {run.folder / entry.run}."
    return f"{name}: {entry.status}; not in the tables. {entry.error or ''}".strip()


def _number(variant: Variant) -> float | None:
    """The setting, where the overlay is named after one: 5 for rollout_length_5."""
    found = None if variant.group == BASE else _SETTING.search(variant.overlay)
    return float(found[1]) if found else None


def _group(run: Run, group: str, overlays: Sequence[Variant]) -> Iterator[Block]:
    # The recipe first, numbers in their order; sorting keeps the order of everything else.
    overlays = sorted(overlays, key=lambda v: (v.group != BASE, _number(v) or 0.0))
    there = {name for variant in overlays for seed in variant.seeds.values() for name in seed}
    names = sorted(name for name in there if name.startswith(SCORE)) + closing_names(there)
    rows: list[Row] = []
    for variant in overlays:
        recipe = " (recipe as it is)" if variant.group != group else ""
        cells = (Cell(*spread(name, variant.values(name))) for name in names)
        rows.append([variant.overlay + recipe, str(len(variant.seeds)), *cells])
    yield Table(["overlay", "seeds", *map(title, names)], rows)
    pictures = [picture for name in names for picture in _picture(run, group, name, overlays)]
    if pictures:
        yield Gallery(pictures[:_FIGURES])
    yield from _of_the_paper(group)


def _picture(run: Run, group: str, name: str, overlays: Sequence[Variant]) -> Iterator[Picture]:
    """A metric over the overlays that are numbers, if there are several."""
    points = [(x, v.values(name)) for v in overlays if (x := _number(v)) is not None]
    points = [(x, values) for x, values in points if values]
    if len(points) > 1:
        line = Series(
            run.index,
            run.label,
            [x for x, _ in points],
            [fmean(values) for _, values in points],
            [stdev(values) if len(values) > 1 else 0.0 for _, values in points],
        )
        file = f"ablation_{run.index}_{file_name(group)}_{file_name(name)}"
        options = {"title": title(name), "setting": group.replace("_", " "), "line": line}
        yield Picture(file, f"{title(name)} over {group}", setting_figure, options)


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
