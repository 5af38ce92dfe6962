"""Files of rows with named columns: ``.jsonl`` and ``.parquet``, and how paths name them."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine_pl.data.bad_rows import BadRows
from refine_pl.errors import DataError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_AT_ONCE = 256  # rows of a parquet file that are in memory together


@dataclass(frozen=True, slots=True)
class NamedRow:
    """One row of a file, as it stands there."""

    where: str  # the file, and the line (from 1) or the row (from 0)
    number: int
    values: dict[str, Any]  # by column
    columns: list[str]  # all that the row has, also those that were not asked for
    whole_file: bool  # the columns are those of every row of the file


def find_files(paths: list[str], suffixes: Collection[str]) -> list[str]:
    """The files that paths and patterns stand for, each once; those of a pattern are sorted.

    Args:
        paths: paths or patterns, relative to the working directory.
        suffixes: endings that are allowed.

    Raises:
        DataError: a file is missing, a pattern matches nothing, or a suffix is unknown.
    """
    if not paths:
        raise DataError("paths is empty", allowed="at least one path or pattern")
    found = [name for path in paths for name in _expand(path)]
    files = list({Path(name).resolve(): name for name in reversed(found)}.values())[::-1]
    for name in files:
        if Path(name).suffix not in suffixes:
            example = sorted(suffixes)[-1]
            raise DataError(
                f"files ending in {Path(name).suffix or 'no suffix'!r} cannot be read",
                where=name,
                allowed=", ".join(suffixes),
                way_out=f"name files or patterns with these endings, such as data/**/*{example}",
            )
    return files


def shown_paths(paths: list[str]) -> str:
    """Paths as they were given, shortened."""
    return ", ".join(paths[:2]) + (f" and {len(paths) - 2} more" if len(paths) > 2 else "")


def named_rows(reporter: BadRows, name: str, wanted: Collection[str]) -> Iterator[NamedRow]:
    """The rows of a ``.jsonl`` or ``.parquet`` file.

    Args:
        reporter: hears of lines that are no rows.
        name: the file.
        wanted: columns that are read from a parquet file, where they exist.

    Raises:
        DataError: the file is damaged.
    """
    if Path(name).suffix == ".parquet":
        yield from _parquet_rows(name, wanted)
        return
    for number, line in text_lines(reporter, name):
        where = f"{name}, line {number}"
        values = json_object(reporter, line, where, next(iter(wanted), "text"))
        if values is not None:
            yield NamedRow(where, number, values, list(values), whole_file=False)


def text_lines(reporter: BadRows, name: str) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers from 1."""
    with open(name, "rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if raw.isspace():
                continue
            line = decoded(reporter, raw, f"{name}, line {number}")
            if line is not None:
                yield number, line


def decoded(reporter: BadRows, content: bytes, where: str) -> str | None:
    """The text of UTF-8, without a byte order mark; otherwise report a bad row."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reporter.bad_row(f"not UTF-8 at byte {error.start}", where=where, allowed="UTF-8 text")
        return None


def json_object(reporter: BadRows, line: str, where: str, example: str) -> dict[str, Any] | None:
    """The columns of a line of ``.jsonl``; otherwise report a bad row.

    Args:
        reporter: hears of a line that is no object.
        line: the line.
        where: the file and the line's number.
        example: a column that the message may name.
    """
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        reporter.bad_row(
            f"not valid JSON: {error.msg} at character {error.colno}",
            where=where,
            allowed="one JSON object per line",
        )
        return None
    if not isinstance(row, dict):
        reporter.bad_row(
            f"a JSON {type(row).__name__}, not an object",
            where=where,
            allowed=f'one JSON object per line, such as {{"{example}": "..."}}',
        )
        return None
    return row


def parquet_batches(
    name: str, choose: Callable[[pa.Schema], list[str]]
) -> Iterator[pa.RecordBatch]:
    """Columns of a parquet file, a few hundred rows at a time.

    Args:
        name: the file.
        choose: the columns, from those that there are; may raise.

    Raises:
        DataError: the file is damaged.
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
        columns = choose(file.schema_arrow)
        batches = file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns)
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise damaged(error) from error
            if batch is None:
                return
            yield batch


def _parquet_rows(name: str, wanted: Collection[str]) -> Iterator[NamedRow]:
    columns: list[str] = []

    def choose(schema: pa.Schema) -> list[str]:
        columns.extend(schema.names)
        return [column for column in schema.names if column in wanted]

    number = 0
    for batch in parquet_batches(name, choose):
        for values in batch.to_pylist():
            yield NamedRow(f"{name}, row {number}", number, values, columns, whole_file=True)
            number += 1


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
