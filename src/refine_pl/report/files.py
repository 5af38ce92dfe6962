"""Reading what runs leave behind, with messages that name the file and the line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from refine_pl.errors import DataError

_WAY_OUT = "restore the file, or move it away: the report then says that it is missing"


def read_json(file: Path) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        DataError: it holds something else.
    """
    try:
        value = json.loads(_text(file))
    except ValueError as error:
        raise DataError(
            f"{file.name} is no JSON: {error}", where=str(file), way_out=_WAY_OUT
        ) from error
    if not isinstance(value, dict):
        raise DataError(
            f"{file.name} holds no JSON object but {type(value).__name__}",
            where=str(file),
            way_out=_WAY_OUT,
        )
    return value


def read_yaml(file: Path) -> dict[str, Any]:
    """A configuration; a :class:`DataError` if it is none."""
    try:
        value = yaml.safe_load(_text(file))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{file.name} is no YAML: {reason}", where=str(file), way_out=_WAY_OUT
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{file.name} holds no mapping", where=str(file), way_out=_WAY_OUT)
    return value


def read_lines(file: Path) -> tuple[list[Fields], str | None]:
    """The objects of a file of JSON lines.

    Returns:
        The objects, and a note if the last line was cut off: a run that was killed, or is still
        writing.

    Raises:
        DataError: another line is no JSON object.
    """
    found: list[Fields] = []
    bad: int | None = None
    for number, line in _numbered(file):
        if bad is not None:
            raise _bad_line(file, bad)
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            found.append(Fields(value, f"{file}, line {number}"))
        else:
            bad = number
    if bad is None:
        return found, None
    if not found:
        raise _bad_line(file, bad)
    return found, f"The last line of {file.name} (line {bad}) is cut off and was left out."


class Fields:
    """The values of one JSON object, whose absence or type is a message.

    Args:
        values: the object.
        where: the file, and the place in it.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def error(self, what: str, allowed: str | None = None) -> DataError:
        """That something is wrong here."""
        return DataError(what, where=self.where, allowed=allowed, way_out=_WAY_OUT)

    def get(self, name: str, *types: type) -> Any:
        """The value of ``name``; ``type(None)`` among the types allows it to be null or missing.

        Raises:
            DataError: it is missing or of another type.
        """
        value = self.values.get(name)
        if name not in self.values and type(None) not in types:
            raise self.error(f"{name} is missing")
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            kinds = " or ".join(t.__name__ for t in types)
            raise self.error(f"{name} is {value!r:.80}", kinds)
        return value

    def number(self, name: str) -> float:
        """The value of ``name`` as a float."""
        return float(self.get(name, int, float))

    def numbers(self, name: str) -> list[float]:
        """The value of ``name`` as a list of floats."""
        values = self.get(name, list)
        for value in values:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise self.error(f"{name} holds {value!r:.80}", "numbers")
        return [float(value) for value in values]

    def mapping(self, name: str) -> dict[str, float]:
        """The value of ``name`` as numbers by name."""
        values = Fields(self.get(name, dict), f"{self.where}, {name}")
        return {key: values.number(key) for key in values.values}

    def objects(self, name: str) -> list[Fields]:
        """The value of ``name`` as a list of objects."""
        found = []
        for i, value in enumerate(self.get(name, list)):
            if not isinstance(value, dict):
                raise self.error(f"{name}[{i}] is no object")
            found.append(Fields(value, f"{self.where}, {name}[{i}]"))
        return found


def _numbered(file: Path) -> Iterator[tuple[int, str]]:
    # Not splitlines: it also splits at separators that JSON leaves inside a string.
    for number, line in enumerate(_text(file).split("\n"), 1):
        if line.strip():
            yield number, line


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file.name} cannot be read: {error}", where=str(file), way_out=_WAY_OUT
        ) from error


def _bad_line(file: Path, number: int) -> DataError:
    return DataError(
        f"line {number} of {file.name} is no JSON object", where=str(file), way_out=_WAY_OUT
    )
