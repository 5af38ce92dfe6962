"""Records in files: JSON that is checked when it is read, and written so that it is always whole.

A record is a dataclass: its fields are the keys in the file, and their types are checked when it
is read. Keys that a record does not have are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from refine_pl.errors import DataError
from refine_pl.parsing import TextError, parse_json, parse_yaml
from refine_pl.whole_files import replace_file

T = TypeVar("T")
_hints = cache(get_type_hints)
# Newlines to some readers, but not to JSON; they may stand in texts only.
_ESCAPED = {ord(c): json.dumps(c)[1:-1] for c in "\x85\u2028\u2029"}


def damaged(what: str, where: object, allowed: str | None = None) -> DataError:
    """That a file does not hold what it should."""
    way_out = "restore the file, or move it away"
    return DataError(what, where=str(where), allowed=allowed, way_out=way_out)


def read_yaml(file: Path) -> dict[str, Any]:
    """A file that holds a mapping, such as settings; a :class:`DataError` if it holds none."""
    return _mapping(file, parse_yaml, "YAML", "a mapping")


def read_json(file: Path) -> dict[str, Any]:
    """A file that holds one JSON object; a :class:`DataError` if it holds something else."""
    return _mapping(file, parse_json, "JSON", "a JSON object")


def read_record(file: Path, kind: type[T]) -> T:
    """A file that holds one record.

    Raises:
        DataError: a field is missing or of another type, or the file is not JSON.
    """
    found: T = _build(kind, read_json(file), str(file))
    return found


def read_records(file: Path, kind: type[T]) -> tuple[list[T], str | None]:
    """The records of a file of JSON lines.

    Returns:
        The records, and a note if the last line was cut off: the run was killed, or still writes.

    Raises:
        DataError: another line is not a JSON object, or a field is missing or of another type.
    """
    # Not splitlines: it also splits at separators that JSON leaves inside a string.
    lines = enumerate(_text(file).split("\n"), 1)
    values = [(number, _object(line)) for number, line in lines if line.strip()]
    note = None
    if len(values) > 1 and values[-1][1] is None:
        note = f"The last line of {file.name} (line {values.pop()[0]}) is cut off and was left out."
    found: list[T] = []
    for number, value in values:
        if value is None:
            raise damaged(f"line {number} of {file.name} is not a JSON object", file)
        found.append(_build(kind, value, f"{file}, line {number}"))
    return found, note


def write_json(file: Path, content: Any) -> None:
    """Replace a file by indented JSON, of a record or of plain values; it is whole at any time."""
    content = asdict(content) if is_dataclass(content) else content  # type: ignore[arg-type]
    replace_file(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def append_records(file: Path, records: Iterable[Any]) -> None:
    """Write lines at once at the end of a file; its folder is made if it is not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # A lone surrogate becomes \\udc80, which is how JSON writes it.
    with file.open("a", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write("".join(map(as_line, records)))


def as_line(values: Any) -> str:
    """A line of JSON, of a record or of a mapping, with the newline."""
    values = asdict(values) if is_dataclass(values) else values  # type: ignore[arg-type]
    return json.dumps(values, ensure_ascii=False).translate(_ESCAPED) + "\n"


def drop_later_lines(file: Path, iteration: int) -> None:
    """Keep the lines of iterations up to ``iteration``; a line that was cut off is dropped too."""

    def keep(line: str) -> bool:
        number = (_object(line) or {}).get("iteration")
        return isinstance(number, int) and number <= iteration

    lines = file.read_text(encoding="utf-8").split("\n")
    replace_file(file, "".join(line + "\n" for line in lines if keep(line)))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(f"{file.name} cannot be read: {error}", file) from error


def _mapping(file: Path, parse: Callable[[str], Any], language: str, name: str) -> dict[str, Any]:
    try:
        value = parse(_text(file))
    except TextError as error:
        where = file if error.line is None else f"{file}, line {error.line}"
        raise damaged(f"{file.name} is not {language}: {error.problem}", where) from error
    if not isinstance(value, dict):
        raise damaged(f"{file.name} does not hold {name} but {type(value).__name__}", file)
    return value


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = parse_json(line)
    except TextError:
        return None
    return value if isinstance(value, dict) else None


def _build(kind: Any, value: Any, where: str, name: str = "") -> Any:
    """``value`` as a ``kind``: a record, a list, a mapping, or a plain value.

    Raises:
        DataError: naming the field that is missing or of another type.
    """
    if kind is Any:
        return value
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # X | None
        return None if value is None else _build(inner[0], value, where, name)
    if origin is list and isinstance(value, list):
        if inner == (float,) and all(type(item) is float for item in value):
            return value  # entropies: there are many
        return [_build(inner[0], v, where, f"{name}[{i}]") for i, v in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {k: _build(inner[1], v, where, f"{name}.{k}") for k, v in value.items()}
    if is_dataclass(kind) and isinstance(value, dict):
        return _record(kind, value, where, f"{name}." if name else "")
    if kind is float and type(value) is int:
        return float(value)
    if origin is None and type(value) is kind:
        return value
    allowed = "object" if is_dataclass(kind) or origin is dict else (origin or kind).__name__
    raise damaged(f"{name} is {value!r:.80}", where, allowed)


def _record(kind: Any, values: dict[str, Any], where: str, prefix: str) -> Any:
    given = {}
    for known in fields(kind):
        if known.name in values:
            hint = _hints(kind)[known.name]
            given[known.name] = _build(hint, values[known.name], where, prefix + known.name)
        elif known.default is MISSING and known.default_factory is MISSING:
            raise damaged(f"{prefix}{known.name} is missing", where)
    try:
        return kind(**given)
    except ValueError as error:
        raise damaged(f"{prefix}{error}", where) from error
