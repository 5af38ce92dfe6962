"""Documents from the user's own files: ``.txt``, ``.jsonl`` and ``.parquet``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from refine_pl.data.bad_rows import column_choice
from refine_pl.data.content_hash import file_hash
from refine_pl.data.corpora.base import Corpus
from refine_pl.data.named_rows import (
    decoded,
    find_files,
    json_object,
    parquet_batches,
    shown_paths,
    text_lines,
)
from refine_pl.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_SUFFIXES = (".txt", ".jsonl", ".parquet")


class Files(Corpus):
    """Documents from files.

    A ``.txt`` file is one document, each line of a ``.jsonl`` file and each row of a ``.parquet``
    file is one. Files are read in the order given, those of a pattern sorted by path; a file that
    is named twice is read once. Large files are read piece by piece.

    Args:
        paths: paths or patterns (``*``, ``?``, ``[...]``, and ``**`` for any depth), relative to
            the folder that ``refine-pl`` was started from.
        text_column: the key of a ``.jsonl`` line, or the column of a ``.parquet`` file.
        on_bad_row: ``error`` stops at a row without usable text; ``skip`` leaves it out and counts.
    """

    def __init__(
        self,
        paths: str | list[str],
        text_column: str = "text",
        on_bad_row: Literal["error", "skip"] = "error",
    ) -> None:
        self.paths = [paths] if isinstance(paths, str) else list(paths)
        self.text_column = text_column
        self.on_bad_row = on_bad_row

    @property
    def label(self) -> str:
        """The paths as they were given, shortened."""
        return f"Files {shown_paths(self.paths)}"

    def files(self) -> list[str]:
        """The files that ``paths`` stands for.

        Raises:
            DataError: a file is missing, a pattern matches nothing, or a suffix is unknown.
        """
        return find_files(self.paths, _SUFFIXES)

    def content_hash(self, memo_dir: Path | None = None) -> str:
        """A digest of the files' names and bytes and of the settings that choose the text."""
        digest = hashlib.blake2b(repr((1, self.text_column, self.on_bad_row)).encode())
        for name in self.files():
            digest.update(repr((name, file_hash(Path(name), memo_dir))).encode())
        return digest.hexdigest()[:32]

    def read(self) -> Iterator[tuple[str, str]]:
        """Yield documents named by path, and by line (from 1) or row (from 0) where there are."""
        readers = {".txt": self._txt, ".jsonl": self._jsonl, ".parquet": self._parquet}
        for name in self.files():
            yield from readers[Path(name).suffix](name)

    def _txt(self, name: str) -> Iterator[tuple[str, str]]:
        text = decoded(self, Path(name).read_bytes(), name)
        if text is not None:
            yield name, text

    def _jsonl(self, name: str) -> Iterator[tuple[str, str]]:
        for number, line in text_lines(self, name):
            text = self._field(line, f"{name}, line {number}")
            if text is not None:
                yield f"{name}:{number}", text

    def _field(self, line: str, where: str) -> str | None:
        row = json_object(self, line, where, self.text_column)
        if row is None:
            return None
        if self.text_column not in row:
            allowed, way_out = column_choice(self.text_column, list(row))
            self.bad_row(
                f"no column {self.text_column!r}", where=where, allowed=allowed, way_out=way_out
            )
            return None
        return self.usable_text(row[self.text_column], self.text_column, where)

    def _parquet(self, name: str) -> Iterator[tuple[str, str]]:
        row = 0
        for batch in parquet_batches(name, lambda schema: self._text_column(schema, name)):
            for value in batch.column(0).to_pylist():
                text = self.usable_text(value, self.text_column, f"{name}, row {row}")
                if text is not None:
                    yield f"{name}:{row}", text
                row += 1

    def _text_column(self, schema: pa.Schema, name: str) -> list[str]:
        """The column, if it is one of text."""
        import pyarrow as pa

        column = self.text_column
        if column not in schema.names:
            allowed, way_out = column_choice(column, schema.names)
            raise DataError(f"no column {column!r}", where=name, allowed=allowed, way_out=way_out)
        kind = schema.field(column).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if str(value) not in ("string", "large_string", "string_view", "null"):
            raise DataError(
                f"column {column!r} holds {kind}", where=name, allowed="a column of strings"
            )
        return [column]
