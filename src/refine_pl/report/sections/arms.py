"""Arms of a comparison: the verdict in words, and what it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from refine_pl.comparison.records import COMPARISON, Comparison, Sample
from refine_pl.comparison.words import arm_name, rows, title, verdict, what_it_is
from refine_pl.figures.text import visible
from refine_pl.report.page import Block, Cell, Note, Row, Table
from refine_pl.report.reading import Run
from refine_pl.training.record_files import read_record


def verdicts(runs: Sequence[Run]) -> Iterator[Block]:
    """What was found, in a sentence or three for each arm."""
    for comparison in _comparisons(runs):
        for result in comparison.arms:
            yield verdict(result, len(comparison.seeds))
        yield Note(what_it_is(comparison))


def arms(runs: Sequence[Run]) -> Iterator[Block]:
    """Every measure of every arm against plain training, and one rollout of each."""
    for comparison in _comparisons(runs):
        for result in comparison.arms:
            names = arm_name(result.arm), arm_name(result.base)
            columns = ["held out", *names, "difference [95%]"]
            heading = title(result, comparison)
            yield Table(columns, [_row(row) for row in rows(result)], title=heading)
            if result.sample is not None:
                yield _sample(result.sample, names)


def _row(row: Sequence[str]) -> Row:
    """A control, which stands below its measure, says that it is one."""
    name = row[0].lstrip()
    return [name if name == row[0] else f"against {name}", *row[1:]]


def _sample(sample: Sample, names: tuple[str, str]) -> Table:
    target = Cell(visible(sample.target), before=f"…{visible(sample.prefix)}")
    drawn: list[Row] = [["the text", target]]
    texts = sample.before, sample.arm, sample.base
    for name, text in zip(("before", *names), texts, strict=True):
        drawn.append([name, Cell(visible(text))])
    caption = "One rollout from the same place, by the same random numbers."
    return Table(["whose", sample.document], drawn, caption, text_columns=2)


def _comparisons(runs: Sequence[Run]) -> Iterator[Comparison]:
    for run in runs:
        file = run.folder / COMPARISON
        if file.is_file():
            yield read_record(file, Comparison)
