"""What happens to a row of a file that cannot be used: the run stops, or the row is counted."""

from __future__ import annotations

from typing import Literal, TypeAlias

from refine_pl.errors import DataError, nearest

OnBadRow: TypeAlias = Literal["error", "skip"]
"""What happens to a row that cannot be used: stop, or leave it out and count it."""


class BadRows:
    """Reports rows that cannot be used.

    Attributes:
        on_bad_row: ``error`` stops at the first row that cannot be used, ``skip`` counts it.
        skipped_rows: rows that the latest complete reading left out.
        first_skipped: what was wrong with the first of them, and where.
    """

    on_bad_row: OnBadRow = "error"
    skipped_rows: int = 0
    first_skipped: str | None = None

    def bad_row(
        self, what: str, *, where: str, allowed: str | None = None, way_out: str | None = None
    ) -> None:
        """Stop at a row that cannot be used or, with ``on_bad_row: skip``, count it.

        Args:
            what: what is wrong with the row.
            where: the file and the line or row number.
            allowed: what the row should have held.
            way_out: what to change; skipping is offered when this is not given.

        Raises:
            DataError: unless ``on_bad_row`` is ``skip``.
        """
        if self.on_bad_row == "error":
            way_out = way_out or "correct the row, or leave such rows out with on_bad_row: skip"
            raise DataError(what, where=where, allowed=allowed, way_out=way_out)
        self.skipped_rows += 1
        if self.first_skipped is None:
            self.first_skipped = f"{where}: {what}"

    def usable_text(self, value: object, column: str, where: str) -> str | None:
        """``value`` if it is text; otherwise report a bad row and give ``None``."""
        if not isinstance(value, str):
            found = "null" if value is None else f"{type(value).__name__} ({value!r:.40})"
            self.bad_row(f"column {column!r} holds {found}", where=where, allowed="text")
            return None
        try:
            value.encode()
        except UnicodeEncodeError as error:
            # JSON can spell half of a surrogate pair, which no encoding of Unicode can hold.
            self.bad_row(
                f"column {column!r} holds half a surrogate pair at character {error.start}",
                where=where,
                allowed="valid Unicode text",
            )
            return None
        return value


def column_choice(column: str, columns: list[str], setting: str = "text_column") -> tuple[str, str]:
    """What to say about a missing column: ``(allowed, way_out)``.

    Args:
        column: the one that is missing.
        columns: those that exist.
        setting: the argument that names the column.
    """
    guess = nearest(column, columns) or (columns[0] if len(columns) == 1 else None)
    way_out = f"{setting}: {guess}" if guess else f"set {setting} to one of them"
    return f"one of the columns that exist: {', '.join(columns) or 'none'}", way_out
