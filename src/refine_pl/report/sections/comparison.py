"""Any two evaluation runs: the difference on the rows that both have answered."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations

from refine_pl.evaluation.bootstrap import PairedDifference, paired_difference
from refine_pl.report.answers import Answered
from refine_pl.report.drawing import Picture
from refine_pl.report.figures import Interval, interval_figure
from refine_pl.report.page import (
    Block,
    Cell,
    Details,
    Gallery,
    Heading,
    Note,
    Paragraph,
    Row,
    Section,
    Table,
)
from refine_pl.report.runs import Run
from refine_pl.report.sections.evaluation import place_name

_ALL = "all rows"
_OPEN = 3  # pairs; more are folded
_EXPLANATION = (
    "Each row is asked of both runs, and the bootstrap draws rows with both scores (paired). The "
    "interval says which differences other rows of the same kind could have given. It knows "
    "nothing of other seeds of the training, and with many tasks some intervals leave out 0 by "
    "chance. The share counts the resamples in which the first run is not better than the second. "
    "Percentage points."
)

Pair = tuple[Answered, Answered]


def comparison_section(runs: Sequence[Run]) -> Section | None:
    """A table and a figure for every pair, the later run minus the earlier one."""
    some = [run for run in runs if run.evaluation and run.evaluation.answers]
    if len(some) < 2:
        return None
    blocks: list[Block] = [Paragraph(_EXPLANATION)]
    pairs = list(combinations(some, 2))
    for earlier, later in pairs:
        title, found = f"{later.label} minus {earlier.label}", compare(later, earlier)
        blocks += [Heading(title), *found] if len(pairs) <= _OPEN else [Details(title, found)]
    return Section("Comparison", blocks)


def compare(a: Run, b: Run) -> list[Block]:
    """Notes on rows that only one has, then ``a - b`` for each task and length."""
    pairs, notes = common_rows(a, b)
    if not pairs:
        return [*notes, Note("The two runs have no scored row in common: no difference.")]
    places = list(dict.fromkeys((x.task, x.length) for x, _ in pairs))
    groups = {
        place_name(*place): [pair for pair in pairs if (pair[0].task, pair[0].length) == place]
        for place in places
    }
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
    heads = [Cell(a.label, run=a.index), Cell(b.label, run=b.index)]
    level = next(iter(found.values())).level
    columns: Row = [
        "task, tokens",
        "rows",
        *heads,
        "difference",
        f"{level:.0%} interval",
        "share not positive",
    ]
    intervals = [
        Interval(i, None, a.label, d.difference, d.low, d.high)
        for i, d in enumerate(found.values())
    ]
    name = f"difference_{a.index}_{b.index}"
    draw = partial(
        interval_figure,
        rows=list(found),
        intervals=intervals,
        x=f"{a.label} minus {b.label}, percentage points",
        zero=True,
    )
    picture = Picture(name, f"Differences, {a.label} minus {b.label}", draw, wide=True)
    last = frozenset({len(rows) - 1}) if _ALL in found else frozenset()
    return [*notes, Table(columns, rows, separated=last), Gallery([picture])]


def common_rows(a: Run, b: Run) -> tuple[list[Pair], list[Note]]:
    """Rows that both have scored, in the order of ``a``; what is left out, in words."""
    assert a.evaluation is not None
    assert b.evaluation is not None
    first = {x.id: x for x in a.evaluation.answers if x.score is not None}
    second = {x.id: x for x in b.evaluation.answers if x.score is not None}
    notes = []
    for run, own, other in ((a, first, second), (b, second, first)):
        alone = [name for name in own if name not in other]
        if alone:
            shown = ", ".join(alone[:3]) + (", …" if len(alone) > 3 else "")
            text = f"{len(alone):,} rows were scored in {run.label} only ({shown}): left out."
            notes.append(Note(text))
    both = [(first[name], second[name]) for name in first if name in second]
    same = [(x, y) for x, y in both if _question(x) == _question(y)]
    if len(same) < len(both):
        text = (
            f"{len(both) - len(same):,} rows have the same id in both runs but another task, "
            "length or references: left out. The data of the runs differ."
        )
        notes.append(Note(text))
    cut = sum(x.cut_tokens != y.cut_tokens for x, y in same)
    if cut:
        notes.append(Note(f"Of {cut:,} rows the two runs read prompts that were cut differently."))
    return same, notes


def signed(value: float) -> str:
    """With its sign; no minus before a zero."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _question(row: Answered) -> tuple[str, int | None, list[str]]:
    return row.task, row.length, row.references


def _difference(pairs: Sequence[Pair]) -> PairedDifference:
    a = {x.id: float(x.score or 0.0) for x, _ in pairs}
    b = {y.id: float(y.score or 0.0) for _, y in pairs}
    return paired_difference(a, b).percent()
