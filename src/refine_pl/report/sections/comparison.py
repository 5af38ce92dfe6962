"""Any two evaluation runs: the difference on the rows that both have answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from refine_pl.evaluation.bootstrap import PairedDifference, paired_difference
from refine_pl.figures.drawing import Picture
from refine_pl.figures.plots import Interval, interval_figure
from refine_pl.report.page import Block, Cell, Details, Gallery, Heading, Note, Row, Table
from refine_pl.report.reading import Run
from refine_pl.report.sections.evaluation import place_name
from refine_pl.training.run_folder import Answer

_ALL = "all rows"
_OPEN = 3  # pairs; more are folded
_EXPLANATION = (
    "Each row is asked of both runs, and the bootstrap draws rows with both scores (paired). The "
    "interval says which differences other rows of the same kind could have given. It knows "
    "nothing of other seeds of the training, and with many tasks some intervals leave out 0 by "
    "chance. The share counts the resamples in which the first run is not better than the second. "
    "Percentage points."
)

Pair = tuple[Answer, Answer]


def comparisons(runs: Sequence[Run]) -> Iterator[Block]:
    """A table and a figure for every pair, the later run minus the earlier one."""
    pairs = list(combinations([run for run in runs if run.answers], 2))
    if pairs:
        yield _EXPLANATION
    for earlier, later in pairs:
        title, found = f"{later.label} minus {earlier.label}", compare(later, earlier)
        if len(pairs) <= _OPEN:
            yield Heading(title)
            yield from found
        else:
            yield Details(title, list(found))


def compare(a: Run, b: Run) -> Iterator[Block]:
    """Notes on rows that only one has, then ``a - b`` for each task and length."""
    pairs, notes = common_rows(a, b)
    yield from map(Note, notes)
    if not pairs:
        yield Note("The two runs have no scored row in common: no difference.")
        return
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(place_name(pair[0].task, pair[0].length), []).append(pair)
    if len(groups) > 1:
        groups[_ALL] = pairs
    found = {name: _difference(group) for name, group in groups.items()}
    rows: list[Row] = [
        [
            name,
            f"{d.num_rows:,}",
            f"{d.mean_a:.1f}",
            f"{d.mean_b:.1f}",
            Cell(signed(d.difference), strong=True),
            f"{signed(d.low)} to {signed(d.high)}",
            f"{d.share_not_positive:.3f}",
        ]
        for name, d in found.items()
    ]
    level = f"{next(iter(found.values())).level:.0%} interval"
    heads = ("difference", level, "share not positive")
    columns: Row = ["task, tokens", "rows", a.name, b.name, *heads]
    last = frozenset({len(rows) - 1}) if _ALL in found else frozenset()
    yield Table(columns, rows, separated=last)
    points = [
        Interval(i, None, a.label, d.difference, d.low, d.high)
        for i, d in enumerate(found.values())
    ]
    x = f"{a.label} minus {b.label}, percentage points"
    name, alt = f"difference_{a.index}_{b.index}", f"Differences, {a.label} minus {b.label}"
    options = {"rows": list(found), "intervals": points, "x": x, "zero": True}
    yield Gallery([Picture(name, alt, interval_figure, options, wide=True)])


def common_rows(a: Run, b: Run) -> tuple[list[Pair], list[str]]:
    """Rows that both have scored, in the order of ``a``; what is left out, in words."""
    first = {answer.id: answer for answer in a.answers if answer.score is not None}
    second = {answer.id: answer for answer in b.answers if answer.score is not None}
    notes = []
    for run, own, other in ((a, first, second), (b, second, first)):
        alone = [name for name in own if name not in other]
        if alone:
            shown = ", ".join(alone[:3]) + (", …" if len(alone) > 3 else "")
            notes.append(
                f"{len(alone):,} rows were scored in {run.label} only ({shown}): left out."
            )
    both = [(first[name], second[name]) for name in first if name in second]
    same = [(x, y) for x, y in both if _question(x) == _question(y)]
    if len(same) < len(both):
        notes.append(
            f"{len(both) - len(same):,} rows have the same id in both runs but another task, "
            "length or references: left out. The data of the runs differ."
        )
    cut = sum(x.cut_tokens != y.cut_tokens for x, y in same)
    if cut:
        notes.append(f"Of {cut:,} rows the two runs read prompts that were cut differently.")
    return same, notes


def signed(value: float) -> str:
    """With its sign; no minus before a zero."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _question(row: Answer) -> tuple[str, int | None, list[str]]:
    return row.task, row.length, row.references


def _difference(pairs: Sequence[Pair]) -> PairedDifference:
    a = {x.id: float(x.score or 0.0) for x, _ in pairs}
    b = {y.id: float(y.score or 0.0) for _, y in pairs}
    return paired_difference(a, b).percent()
