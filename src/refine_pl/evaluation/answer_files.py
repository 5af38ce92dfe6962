"""The lines of a run folder: written as answers come, put in order at the end.

The first process appends to ``NAME.jsonl``, process ``r`` to ``NAME.rank<r>.jsonl``. Every batch is
one write, so a run that is killed loses at most the batch that it was writing.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from refine_pl.errors import DataError

ANSWERS, PREDICTIONS = "answers.jsonl", "predictions.jsonl"

Line = dict[str, Any]

# Newlines to some readers, but not to JSON; they may stand in texts only.
_ESCAPED = {ord(c): json.dumps(c)[1:-1] for c in "\x85\u2028\u2029"}


class LineWriter:
    """Appends lines to a file, a batch at a time.

    Args:
        path: the file; made when the first line comes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def write(self, lines: Sequence[Line]) -> None:
        """Append ``lines``, and see to it that they are in the file."""
        if self._file is None:
            # A lone surrogate becomes \\udc80, which is how JSON writes it.
            self._file = self._path.open("a", encoding="utf-8", errors="backslashreplace")
        self._file.write("".join(map(_as_text, lines)))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def part_file(folder: Path, name: str, rank: int) -> Path:
    """The file that a process appends to."""
    stem, _, ending = name.rpartition(".")
    return folder / (name if rank == 0 else f"{stem}.rank{rank}.{ending}")


def read_all(folder: Path, name: str) -> list[Line]:
    """The lines of all processes; a row that is there twice counts once.

    Raises:
        DataError: a line other than the last one of a file is damaged.
    """
    lines: dict[str, Line] = {}
    for path in _parts(folder, name):
        for line in _read(path):
            lines.setdefault(line["id"], line)
    return list(lines.values())


def rewrite(folder: Path, name: str, lines: Iterable[Line]) -> None:
    """Replace what all processes wrote by one file; there is a whole one at any moment."""
    fresh = folder / f".{name}.new"
    with fresh.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(map(_as_text, lines))
    os.replace(fresh, folder / name)
    for path in _parts(folder, name):
        if path.name != name:
            path.unlink()


def write_json(path: Path, content: Any) -> None:
    """Replace a file by indented JSON; there is a whole one at any moment."""
    fresh = path.with_name(f".{path.name}.new")
    text = json.dumps(content, indent=2, ensure_ascii=False)
    fresh.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    os.replace(fresh, path)


def _as_text(line: Line) -> str:
    return json.dumps(line, ensure_ascii=False).translate(_ESCAPED) + "\n"


def _parts(folder: Path, name: str) -> list[Path]:
    stem, _, ending = name.rpartition(".")
    first = [folder / name] if (folder / name).is_file() else []
    return first + sorted(folder.glob(f"{stem}.rank*.{ending}"))


def _read(path: Path) -> list[Line]:
    """The lines of one file without a last one that was cut off."""
    *whole, _cut_off = path.read_bytes().split(b"\n")
    lines = []
    for number, text in enumerate(whole, 1):
        found: Any = None
        with contextlib.suppress(ValueError):
            found = json.loads(text)
        if not isinstance(found, dict) or not isinstance(found.get("id"), str):
            raise DataError(
                f"line {number} of {path.name} is damaged",
                where=str(path),
                allowed="one JSON object with an id on each line",
                way_out="take the line out: its row is then answered again",
            )
        lines.append(found)
    return lines
