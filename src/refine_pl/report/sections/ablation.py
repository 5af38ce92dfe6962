"""The runs of a sweep side by side: a table for each group of overlays, lines over numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev

from refine_pl.report import paper
from refine_pl.report.drawing import Picture
from refine_pl.report.figures import Series, setting_figure
from refine_pl.report.metrics import CURVES, metric_of, shown, title_of
from refine_pl.report.page import (
    Block,
    Cell,
    Details,
    Gallery,
    Heading,
    Note,
    Paragraph,
    Section,
    Table,
)
from refine_pl.report.runs import Run
from refine_pl.report.sweep import BASE, SCORE, Entry, Sweep
from refine_pl.report.text import file_name, shortened

_FIGURES = 4  # metrics of a group that get a figure


@dataclass(frozen=True, slots=True)
class Spread:
    """Values of the seeds of one overlay."""

    values: list[float]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return mean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds (n - 1); ``None`` for one seed."""
        return stdev(self.values) if len(self.values) > 1 else None


def ablation_sections(runs: Sequence[Run]) -> list[Section]:
    """One section for each sweep."""
    sweeps = [(run, run.sweep) for run in runs if run.sweep]
    return [
        Section("Ablations" if len(sweeps) == 1 else f"Ablations: {run.label}", _blocks(run, sweep))
        for run, sweep in sweeps
    ]


def _blocks(run: Run, sweep: Sweep) -> list[Block]:
    done = [entry for entry in sweep.entries if entry.status == "done"]
    seeds = sorted({entry.seed for entry in sweep.entries})
    text = f"Overlays on {sweep.base}, " if sweep.base else ""
    text += (
        f"seeds {', '.join(map(str, seeds))}. Numbers of the last validation of each run: mean "
        "over the seeds ± their standard deviation (n - 1)."
    )
    blocks: list[Block] = [Paragraph(text)]
    blocks += [
        Note(f"{_name(entry)}: {entry.status}; not in the tables. {entry.error}".strip())
        for entry in sweep.entries
        if entry.status != "done"
    ]
    blocks += [
        Note(f"{_name(entry)}: done, but no numbers in {entry.folder}.")
        for entry in done
        if not entry.metrics
    ]
    groups = list(dict.fromkeys(entry.group for entry in sweep.entries))
    base = [entry for entry in done if entry.group == BASE and entry.metrics]
    for group in [group for group in groups if group != BASE] or groups:
        entries = [entry for entry in done if entry.group == group and entry.metrics]
        blocks.append(Heading(group))
        if entries and group != BASE:
            entries = base + entries
        blocks += _group(run, group, entries) if entries else [Note("No run has finished.")]
    if sweep.changes:
        blocks.append(_changes(sweep))
    return blocks


def _name(entry: Entry) -> str:
    return f"{entry.group}/{entry.overlay}, seed {entry.seed}"


def _changes(sweep: Sweep) -> Details:
    rows = [
        [f"{group}/{overlay}", key, shortened(str(value), 120)]
        for (group, overlay), changes in sweep.changes.items()
        for key, value in changes.items()
    ]
    table = Table(["overlay", "setting", "value"], rows, text_columns=3)
    return Details("What each overlay changes", [table])


def _group(run: Run, group: str, entries: Sequence[Entry]) -> list[Block]:
    overlays = list(dict.fromkeys(entry.overlay for entry in entries))
    numbers = {entry.overlay: entry.number for entry in entries}
    table_group = {entry.overlay: entry.group for entry in entries}
    # The recipe first, numbers in their order; sorting keeps the order of everything else.
    overlays.sort(key=lambda overlay: numbers[overlay] or 0.0)
    names = _names(entries)
    table: dict[str, dict[str, Spread]] = {
        overlay: _spreads([e for e in entries if e.overlay == overlay], names)
        for overlay in overlays
    }
    rows = [
        [
            overlay if table_group[overlay] == group else f"{overlay} (recipe as it is)",
            str(sum(entry.overlay == overlay for entry in entries)),
            *(_cell(name, table[overlay].get(name)) for name in names),
        ]
        for overlay in overlays
    ]
    blocks: list[Block] = [Table(["overlay", "seeds", *map(_title, names)], rows)]
    drawn = [overlay for overlay in overlays if numbers[overlay] is not None]
    if len(drawn) > 1:
        pictures = [_picture(run, group, name, drawn, numbers, table) for name in names]
        blocks.append(Gallery([p for p in pictures if p is not None][:_FIGURES]))
    return blocks + _paper(group)


def _names(entries: Sequence[Entry]) -> list[str]:
    there = {name for entry in entries for name in entry.metrics}
    scores = sorted(name for name in there if name.startswith(SCORE))
    known = [n for m in CURVES["Validation"] for n in sorted(there) if metric_of(n) is m]
    return scores + [name for name in known if name != "val/sampled_accuracy"]


def _title(name: str) -> str:
    return name.removeprefix(SCORE) if name.startswith(SCORE) else title_of(name)


def _spreads(entries: Sequence[Entry], names: Sequence[str]) -> dict[str, Spread]:
    found = {name: [e.metrics[name] for e in entries if name in e.metrics] for name in names}
    return {name: Spread(values) for name, values in found.items() if values}


def _cell(name: str, spread: Spread | None) -> Cell | str:
    if spread is None:
        return "–"
    form = _form(name)
    deviation = spread.deviation
    return Cell(form(spread.mean), "" if deviation is None else f"± {form(deviation)}")


def _form(name: str) -> Callable[[float], str]:
    if name.startswith(SCORE):
        return lambda value: f"{value:.1f}"
    return lambda value: shown(name, value)


def _picture(
    run: Run,
    group: str,
    name: str,
    overlays: Sequence[str],
    numbers: dict[str, float | None],
    table: dict[str, dict[str, Spread]],
) -> Picture | None:
    there = [overlay for overlay in overlays if name in table[overlay]]
    if len(there) < 2:
        return None
    x = [numbers[overlay] or 0.0 for overlay in there]
    spreads = [table[overlay][name] for overlay in there]
    series = Series(
        run.index, run.label, x, [s.mean for s in spreads], [s.deviation or 0.0 for s in spreads]
    )
    draw = partial(
        setting_figure, title=_title(name), setting=group.replace("_", " "), series=[series]
    )
    file = f"ablation_{run.index}_{file_name(group)}_{file_name(name)}"
    return Picture(file, f"{_title(name)} over {group}", draw)


def _paper(group: str) -> list[Block]:
    if group == "rollout_length":
        return [Paragraph(f"{paper.BEST_ROLLOUT_LENGTH} ({paper.SOURCE})")]
    rows = [
        [row.setting, *("–" if v is None else f"{v:.1f}" for v in (row.lact, row.delta_net))]
        for row in paper.ABLATIONS.get(group, ())
    ]
    if not rows:
        return []
    caption = f"{paper.SOURCE}: LongBench average after mid-training, percent; copied, not run."
    return [Table(["the paper", "LaCT-760M", "DeltaNet-1.3B"], rows, caption)]
