"""Where the settings of runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from refine_pl.figures.text import shortened
from refine_pl.report.page import Block, Details, Row, Table
from refine_pl.report.reading import Run
from refine_pl.report.settings import differences, of_one_class

_VALUE = 160  # characters of a setting
_COMPARED = ("model", "decoding", "data", "test_time_training", "precision", "device")  # of a card


def differing_settings(runs: Sequence[Run]) -> Iterator[Block]:
    """The settings that differ, among training runs and among evaluation runs."""
    training = [run for run in runs if "training" in run.kinds and run.config]
    others = [run for run in runs if run.kinds == ["evaluation"]]
    for name, some in (("training runs", training), ("evaluation runs", others)):
        some = [run for run in some if run.config]
        if len(some) < 2:
            continue
        rows = differences([run.config for run in some])
        if not rows:
            yield f"The {name} have the same settings."
            continue
        caption = f"Keys of config.yaml whose values are not the same in all {name}."
        folded = of_one_class(rows)
        shown = [row for row, inner in zip(rows, folded, strict=True) if not inner]
        yield _table("setting", some, shown, caption)
        if any(folded):
            more = [row for row, inner in zip(rows, folded, strict=True) if inner]
            title = f"{len(more)} settings of classes that not all {name} have"
            yield Details(title, [_table("setting", some, more)])
    evaluated = [run for run in runs if run.card]
    rows = differences([_compared(run.card) for run in evaluated])
    if rows:
        caption = "What card.json says differently: model, decoding, data, test-time training."
        yield _table("card.json", evaluated, rows, caption)


def _compared(card: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in card.items() if key in _COMPARED}


def _table(
    what: str, runs: Sequence[Run], rows: Sequence[tuple[str, list[str]]], caption: str = ""
) -> Table:
    cells: list[Row] = [[key, *(shortened(v, _VALUE) for v in values)] for key, values in rows]
    return Table([what, *(run.name for run in runs)], cells, caption, text_columns=len(runs) + 1)
