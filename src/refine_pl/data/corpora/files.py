"""Documents from the user's own files: ``.txt``, ``.jsonl`` and ``.parquet``."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from refine_pl.data.content_hash import file_hash
from refine_pl.data.corpora.base import Corpus, column_choice
from refine_pl.errors import DataError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

_SUFFIXES = (".txt", ".jsonl", ".parquet")
_ROWS_AT_ONCE = 256  # rows of a parquet file that are in memory together


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
        more = f" and {len(self.paths) - 2} more" if len(self.paths) > 2 else ""
        return f"Files {', '.join(self.paths[:2])}{more}"

    def files(self) -> list[str]:
        """The files that ``paths`` stands for.

        Raises:
            DataError: a file is missing, a pattern matches nothing, or a suffix is unknown.
        """
        if not self.paths:
            raise DataError("paths is empty", allowed="at least one path or pattern")
        found = [name for path in self.paths for name in _expand(path)]
        files = list({Path(name).resolve(): name for name in reversed(found)}.values())[::-1]
        for name in files:
            if Path(name).suffix not in _SUFFIXES:
                raise DataError(
                    f"files ending in {Path(name).suffix or 'no suffix'!r} cannot be read",
                    where=name,
                    allowed=", ".join(_SUFFIXES),
                    way_out="name files or patterns with these endings, such as data/**/*.txt",
                )
        return files

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
        text = self._decoded(Path(name).read_bytes(), name)
        if text is not None:
            yield name, text

    def _jsonl(self, name: str) -> Iterator[tuple[str, str]]:
        with open(name, "rb") as lines:
            for number, raw in enumerate(lines, start=1):
                where = f"{name}, line {number}"
                if raw.isspace():
                    continue
                line = self._decoded(raw, where)
                text = None if line is None else self._field(line, where)
                if text is not None:
                    yield f"{name}:{number}", text

    def _decoded(self, content: bytes, where: str) -> str | None:
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self.bad_row(f"not UTF-8 at byte {error.start}", where=where, allowed="UTF-8 text")
            return None

    def _field(self, line: str, where: str) -> str | None:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            self.bad_row(
                f"not valid JSON: {error.msg} at character {error.colno}",
                where=where,
                allowed="one JSON object per line",
            )
            return None
        if not isinstance(row, dict):
            self.bad_row(
                f"a JSON {type(row).__name__}, not an object",
                where=where,
                allowed=f'one JSON object per line, such as {{"{self.text_column}": "..."}}',
            )
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
        for batch in _record_batches(name, self.text_column):
            for value in batch.column(0).to_pylist():
                text = self.usable_text(value, self.text_column, f"{name}, row {row}")
                if text is not None:
                    yield f"{name}:{row}", text
                row += 1


def _expand(path: str) -> list[str]:
    """The files that one path or pattern stands for."""
    path = str(Path(path).expanduser())
    if Path(path).is_file():  # before patterns: a name may hold brackets
        return [path]
    if Path(path).is_dir():
        raise DataError(
            "a folder was given where files are expected",
            where=path,
            way_out=f"give a pattern: {path}/**/*.txt",
        )
    if glob.has_magic(path):
        found = sorted(name for name in glob.glob(path, recursive=True) if Path(name).is_file())
        if not found:
            raise DataError(
                f"no file matches {path!r}",
                where=f"patterns start from {Path.cwd()}",
                way_out="check the pattern; ** stands for folders of any depth",
            )
        return found
    folder = Path(path).parent
    guess = nearest(Path(path).name, [p.name for p in folder.iterdir()] if folder.is_dir() else [])
    raise DataError(
        f"file not found: {path}",
        where=f"paths start from {Path.cwd()}",
        way_out=f"did you mean {folder / guess}?" if guess else "check the path",
    )


def _record_batches(name: str, column: str) -> Iterator[pa.RecordBatch]:
    """The column of a parquet file, a few hundred rows at a time.

    Raises:
        DataError: the file is damaged, or it has no such column of text.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def damaged(error: Exception) -> DataError:
        return DataError(
            f"not a readable parquet file: {str(error).splitlines()[0]}",
            where=name,
            way_out="write or download the file again",
        )

    try:
        file = pq.ParquetFile(name)
    except (pa.ArrowException, OSError) as error:
        raise damaged(error) from error
    with file:
        schema = file.schema_arrow
        if column not in schema.names:
            allowed, way_out = column_choice(column, schema.names)
            raise DataError(f"no column {column!r}", where=name, allowed=allowed, way_out=way_out)
        kind = schema.field(column).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if str(value) not in ("string", "large_string", "string_view", "null"):
            raise DataError(
                f"column {column!r} holds {kind}", where=name, allowed="a column of strings"
            )
        batches = file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[column])
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise damaged(error) from error
            if batch is None:
                return
            yield batch
