"""Records of files: lines of ``.jsonl`` and ``.txt``, rows of ``.parquet``, and those that are bad.

Lines are parsed here and not by ``datasets.load_dataset("json")``, which makes other values of the
same file: answers such as ``"1999-01-01"`` become points in time, ids of many digits become rounded
numbers, ``"9"`` beside ``9`` becomes a number, a missing column becomes an empty one, blank lines
are not counted, and one bad line makes the whole file unreadable.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal, TypeAlias, TypeVar

from refine_pl.data.paths import find_files, short_names, shown_paths
from refine_pl.errors import DataError, nearest
from refine_pl.parsing import TextError, parse_json

OnBadRow: TypeAlias = Literal["error", "skip"]
"""What happens to a row that cannot be used: stop, or leave it out and count it."""

_ROWS_AT_ONCE = 256  # rows of a parquet file that are in memory together
Item = TypeVar("Item")
T = TypeVar("T")


class BadRow(DataError):
    """A row that cannot be used; skipping it is offered where there is no other way out."""

    def __init__(
        self, what: str, *, where: str, allowed: str | None = None, way_out: str | None = None
    ) -> None:
        way_out = way_out or "correct the row, or leave such rows out with on_bad_row: skip"
        super().__init__(what, where=where, allowed=allowed, way_out=way_out)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One row of a file, as it stands there."""

    file: str
    where: str  # the file, and the line (from 1) or the row (from 0)
    number: int
    values: dict[str, Any]  # by column
    columns: list[str]  # all that the row has, also those that were not asked for
    of_all: bool = False  # whether every row of the file has these columns

    def bad(self, what: str, allowed: str) -> BadRow:
        """The error that the row cannot be used."""
        return BadRow(what, where=self.where, allowed=allowed)

    def text(self, column: str, setting: str, *, blank: bool = False) -> str:
        """The text of a column, which ``setting`` names; ``blank``: or white space alone.

        Raises:
            BadRow: there is none.
        """
        text = self.checked_text(self.value(column, setting), column)
        if not blank and not text.strip():
            raise self.bad(f"column {column!r} is empty", "text")
        return text

    def value(self, column: str, setting: str, way_out: str | None = None) -> Any:
        """What a column holds; ``way_out`` is for the message, instead of the nearest column.

        Raises:
            BadRow: the row has no such column.
            DataError: no row of the file has it, so that there is nothing to skip to.
        """
        if column in self.columns:
            return self.values[column]
        guess = nearest(column, self.columns)
        if guess is None and len(self.columns) == 1:
            guess = self.columns[0]
        guessed = f"{setting}: {guess}" if guess else f"set {setting} to one of them"
        raise (DataError if self.of_all else BadRow)(
            f"no column {column!r}",
            where=self.file if self.of_all else self.where,
            allowed=f"one of the columns that exist: {', '.join(self.columns) or 'none'}",
            way_out=way_out or guessed,
        )

    def answers(self, column: str | None, required: bool = True) -> tuple[str, ...]:
        """The right answers, a list of texts or one text, in one of :func:`answer_columns`.

        Raises:
            BadRow: there is none although it is ``required``, or it is blank or not a text.
        """
        candidates = answer_columns(column)
        found = next((name for name in candidates if name in self.columns), None)
        if found is None and column is None and not required:
            return ()
        found = found or candidates[0]
        value = self.value(found, "answers_column")
        answers: list[Any] = [] if value is None else value if isinstance(value, list) else [value]
        if not answers and required:
            what = f"the row has no answers: column {found!r} holds {value!r}"
            raise self.bad(what, "a text, or a list of at least one")
        for answer in answers:
            if not self.checked_text(answer, found).strip():  # every output contains it
                raise self.bad(f"column {found!r} holds an empty answer", "text")
        return tuple(answers)

    def count(self, column: str) -> int | None:
        """A number of tokens, or None where there is none; raises BadRow for all else."""
        value = self.values.get(column)
        if value is None or (type(value) is int and value >= 1):
            return value
        raise self.bad(f"column {column!r} holds {value!r:.40}", "a number of tokens, at least 1")

    def checked_text(self, value: object, column: str) -> str:
        """``value``; raises BadRow if it is not text, or no encoding of Unicode can hold it."""
        if not isinstance(value, str):
            found = "null" if value is None else f"{type(value).__name__} ({value!r:.40})"
            raise self.bad(f"column {column!r} holds {found}", "text")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
            what = f"column {column!r} holds half a surrogate pair at character {error.start}"
            raise self.bad(what, "valid Unicode text") from error
        return value


class RowReader:
    """Reads rows, and stops at those that cannot be used or counts them.

    Attributes:
        on_bad_row: ``error`` stops at the first row that cannot be used, ``skip`` counts it.
        skipped_rows: rows that the latest complete reading left out.
        first_skipped: what was wrong with the first of them, and where.
    """

    # A dataclass of another module inherits them, and its fields are read with that module's names:
    # the types stand here as they are, not as text.
    on_bad_row: OnBadRow = "error"
    skipped_rows: int = 0
    first_skipped: str | None = None

    @property
    def label(self) -> str:
        """What people read in messages: the class and where its rows are from."""
        return type(self).__name__

    def bad_row(self, what: str, *, where: str, allowed: str | None = None) -> None:
        """Stop at a row that cannot be used or, with ``on_bad_row: skip``, count it.

        Args:
            what: what is wrong with the row.
            where: the file and the line or row number.
            allowed: what the row should have held.

        Raises:
            BadRow: unless ``on_bad_row`` is ``skip``.
        """
        self._report(BadRow(what, where=where, allowed=allowed))

    def usable(self, items: Iterable[Item], make: Callable[[Item], T]) -> Iterator[T]:
        """What ``make`` makes of every item; those that it raises BadRow for are counted."""
        for item in items:
            try:
                made = make(item)
            except BadRow as error:
                self._report(error)
            else:
                yield made

    def counted(self, read: Callable[[], Iterable[T]], what: str) -> Iterator[T]:
        """What a reading gives; its skipped rows are counted from 0.

        Raises:
            DataError: there is not one ``what``.
        """
        self.skipped_rows, self.first_skipped = 0, None
        empty = True
        for item in read():
            empty = False
            yield item
        if empty:
            skipped = f": all {self.skipped_rows} rows were skipped" if self.skipped_rows else ""
            raise DataError(
                f"{self.label} holds no {what}{skipped}",
                where=self.first_skipped,
                allowed=f"at least one {what}",
            )

    def skip_notes(self) -> list[str]:
        """How many rows were left out and what was wrong with the first; nothing if none were."""
        count, first = self.skipped_rows, self.first_skipped
        return [f"skipped rows: {count:,}; the first was {first}"] if count else []

    def _report(self, error: BadRow) -> None:
        if self.on_bad_row == "error":
            raise error
        self.skipped_rows += 1
        self.first_skipped = self.first_skipped or f"{error.where}: {error.what}"


class FileReader(RowReader):
    """A :class:`RowReader` of files, for a dataclass with the field ``paths``.

    Attributes:
        paths: paths or patterns, relative to the working directory.
        suffixes: endings of the files that can be read.
    """

    paths: str | list[str]
    suffixes: tuple[str, ...] = (".txt", ".jsonl", ".parquet")

    def __post_init__(self) -> None:
        self.paths = [self.paths] if isinstance(self.paths, str) else list(self.paths)

    @property
    def label(self) -> str:
        """The class, and the paths as they were given, shortened."""
        return f"{type(self).__name__} {shown_paths(self.paths)}"

    def files(self) -> list[str]:
        """The files that ``paths`` stands for.

        Raises:
            DataError: a file is missing, a pattern matches nothing, or a suffix is unknown.
        """
        return find_files(self.paths, self.suffixes)

    def named_files(self) -> dict[str, str]:
        """The files by their short names."""
        files = self.files()
        return dict(zip(short_names(files), files, strict=True))

    def read_files(
        self, columns: Iterable[str | None], make: Callable[[str, FileRecord], T]
    ) -> Iterator[T]:
        """What ``make`` makes of the short name of a file and of each of its records."""
        wanted = [column for column in columns if column]
        for short, name in self.named_files().items():
            yield from self.read_file(name, wanted, partial(make, short))

    def read_file(
        self, name: str, columns: Collection[str], make: Callable[[FileRecord], T]
    ) -> Iterator[T]:
        """What ``make`` makes of every record of a file, as :meth:`usable`.

        Args:
            name: a ``.jsonl``, ``.parquet`` or ``.txt`` file, of which each line is a text.
            columns: those that are wanted; the first is what a line of ``.txt`` holds.
            make: raises :class:`BadRow` for a row that cannot be used.

        Raises:
            DataError: the file is damaged, or a row is bad and ``on_bad_row`` is ``error``.
        """
        if name.endswith(".parquet"):
            return self.usable(_parquet_rows(name, columns), make)
        return self.read_lines(_opened(name), name, name.endswith(".jsonl"), columns, make)

    def read_lines(
        self,
        lines: Iterable[bytes],
        name: str,
        hold_json: bool,
        columns: Collection[str],
        make: Callable[[FileRecord], T],
    ) -> Iterator[T]:
        """As :meth:`read_file`, of the lines of a file of that ``name``.

        Args:
            lines: blank ones are left out.
            name: for messages.
            hold_json: otherwise each line is a text.
            columns: as in :meth:`read_file`.
            make: as in :meth:`read_file`.
        """
        first = next(iter(columns))
        record = partial(_json_record, name, first) if hold_json else partial(_text, name, first)
        numbered = ((i, line) for i, line in enumerate(lines, start=1) if not line.isspace())
        return self.usable(numbered, lambda line: make(record(*line)))


def answer_columns(column: str | None) -> list[str]:
    """The columns of which one holds the answers: ``column``, or else the usual ones."""
    return [column] if column else ["answers", "answer"]


def decoded(content: bytes, where: str) -> str:
    """The text of UTF-8, without a byte order mark; raises BadRow if it is not that."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"not UTF-8 at byte {error.start}"
        raise BadRow(what, where=where, allowed="UTF-8 text") from error


def _opened(name: str) -> Iterator[bytes]:
    with open(name, "rb") as lines:
        yield from lines


def _text(name: str, column: str, number: int, line: bytes) -> FileRecord:
    """The record of a line that is a text, that of the ``column``."""
    where = f"{name}, line {number}"
    text = decoded(line, where).rstrip("\r\n")
    return FileRecord(name, where, number, {column: text}, [column])


def _json_record(name: str, column: str, number: int, line: bytes) -> FileRecord:
    where = f"{name}, line {number}"
    text = decoded(line, where)
    try:
        row = parse_json(text)
    except TextError as error:
        what = f"not valid JSON: {error.problem}"
        raise BadRow(what, where=where, allowed="one JSON object per line") from error
    if not isinstance(row, dict):
        example = f'one JSON object per line, such as {{"{column}": "..."}}'
        raise BadRow(f"a JSON {type(row).__name__}, not an object", where=where, allowed=example)
    return FileRecord(name, where, number, row, list(row))


def _parquet_rows(name: str, wanted: Collection[str]) -> Iterator[FileRecord]:
    """The rows of a file, numbered from 0, with the values of the wanted columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(name) as file:
            columns = file.schema_arrow.names
            chosen = [column for column in columns if column in wanted]
            batches = file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=chosen)
            rows = (batch.to_pylist() if chosen else [{}] * batch.num_rows for batch in batches)
            for number, values in enumerate(chain.from_iterable(rows)):
                where = f"{name}, row {number}"
                yield FileRecord(name, where, number, values, columns, of_all=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"not a readable parquet file: {str(error).splitlines()[0]}",
            where=name,
            way_out="write or download the file again",
        ) from error
