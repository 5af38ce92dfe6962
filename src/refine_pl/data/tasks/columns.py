"""What the columns of a row must hold, and what is said when they do not."""

from __future__ import annotations

from typing import Any

from refine_pl.data.bad_rows import BadRows, column_choice
from refine_pl.data.named_rows import NamedRow
from refine_pl.errors import DataError


def text_of(reporter: BadRows, named: NamedRow, column: str, setting: str) -> str | None:
    """The text of a column that is not blank; otherwise report the row.

    Args:
        reporter: hears of a row that cannot be used.
        named: the row.
        column: the column.
        setting: the argument that names the column.
    """
    if column not in named.columns:
        missing_column(reporter, named, column, setting)
        return None
    text = reporter.usable_text(named.values[column], column, named.where)
    if text is not None and not text.strip():
        reporter.bad_row(f"column {column!r} is empty", where=named.where, allowed="text")
        return None
    return text


def answers_of(
    reporter: BadRows, named: NamedRow, column: str, require_answers: bool = True
) -> tuple[str, ...] | None:
    """The answers of a row, a list of texts or one text; otherwise report the row.

    Args:
        reporter: hears of a row that cannot be used.
        named: the row.
        column: the column, which exists.
        require_answers: whether there must be one.
    """
    value = named.values[column]
    answers: list[Any] = [] if value is None else value if isinstance(value, list) else [value]
    if not answers:
        if require_answers:
            reporter.bad_row(
                f"the row has no answers: column {column!r} holds {value!r}",
                where=named.where,
                allowed="a text, or a list of at least one",
            )
            return None
        return ()
    for answer in answers:
        if reporter.usable_text(answer, column, named.where) is None:
            return None
        if not answer.strip():
            # Every output contains it.
            reporter.bad_row(
                f"column {column!r} holds an empty answer", where=named.where, allowed="text"
            )
            return None
    return tuple(answers)


def missing_column(reporter: BadRows, named: NamedRow, column: str, setting: str) -> None:
    """Report a column that a row does not have.

    Args:
        reporter: hears of the row.
        named: the row.
        column: the column.
        setting: the argument that names the column.
    """
    allowed, way_out = column_choice(column, named.columns, setting)
    report_missing(reporter, named, column, allowed, way_out)


def report_missing(
    reporter: BadRows, named: NamedRow, column: str, allowed: str, way_out: str
) -> None:
    """Report a missing column, with a way out of one's own.

    Raises:
        DataError: if no row of the file has it, or bad rows are errors.
    """
    what = f"no column {column!r}"
    if named.whole_file:
        # No row of a parquet file has it: there would be nothing left to skip to.
        where = named.where.rpartition(", row ")[0]
        raise DataError(what, where=where, allowed=allowed, way_out=way_out)
    reporter.bad_row(what, where=named.where, allowed=allowed, way_out=way_out)
