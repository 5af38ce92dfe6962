"""A corpus is a source of named documents: ``(name, text)`` pairs in a fixed order."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

from refine_pl.errors import DataError, nearest

OnBadRow: TypeAlias = Literal["error", "skip"]
"""What happens to a row without usable text: stop, or leave it out and count it."""


class Corpus(ABC):
    """Named documents.

    A corpus of your own is a subclass with one method, :meth:`read`, in a file of the folder you
    start ``refine-pl`` from; name it in YAML as ``class_path: my_corpus.MyCorpus``.

    Attributes:
        on_bad_row: ``error`` stops at the first row that cannot be used, ``skip`` counts it.
        skipped_rows: rows that the latest complete reading left out.
        first_skipped: what was wrong with the first of them, and where.
    """

    on_bad_row: OnBadRow = "error"
    skipped_rows: int = 0
    first_skipped: str | None = None

    @abstractmethod
    def read(self) -> Iterator[tuple[str, str]]:
        """Yield ``(name, text)``, in the same order every time.

        Report what cannot be used with :meth:`bad_row`.
        """

    @property
    def label(self) -> str:
        """What people read in messages: the class and where its documents are."""
        return type(self).__name__

    def documents(self) -> Iterator[tuple[str, str]]:
        """Yield ``(name, text)`` and count the skipped rows.

        Raises:
            DataError: a row cannot be used, or there is not one document.
        """
        self.skipped_rows, self.first_skipped = 0, None
        number = 0
        for name, text in self.read():
            number += 1
            yield name, text
        if number == 0:
            what = f"{self.label} holds no document"
            if self.skipped_rows:
                what += f": all {self.skipped_rows} rows were skipped"
            raise DataError(what, where=self.first_skipped, allowed="at least one document")

    def content_hash(self, memo_dir: Path | None = None) -> str:
        """A digest of all that decides what :meth:`documents` yields; costs one reading.

        Args:
            memo_dir: folder where digests of large, unchanged files may be remembered.
        """
        digest = hashlib.blake2b(digest_size=16)
        for document in self.documents():
            for part in document:
                encoded = part.encode()
                # The length keeps ("ab", "c") apart from ("a", "bc").
                digest.update(len(encoded).to_bytes(8, "little"))
                digest.update(encoded)
        return digest.hexdigest()

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


def column_choice(column: str, columns: list[str]) -> tuple[str, str]:
    """What to say about a missing column: ``(allowed, way_out)``."""
    guess = nearest(column, columns) or (columns[0] if len(columns) == 1 else None)
    way_out = f"text_column: {guess}" if guess else "set text_column to one of them"
    return f"one of the columns that exist: {', '.join(columns) or 'none'}", way_out
