"""Generated rows on disk: made once, then read by every run.

A file is named by everything that its rows depend on, so it can never be out of date. It is written
under another name and renamed when it is complete, so it can never be read half. Its first line
says how many rows follow and what their digest is.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from refine_pl.data.tasks.base import rows_hash
from refine_pl.errors import ConfigError
from refine_pl.task_records import TaskRow

FORMAT = 1


@dataclass(frozen=True, slots=True)
class MadeRows:
    """Rows, and what people should know about them."""

    rows: list[TaskRow]
    notes: list[str]


def cached_rows(
    key: str,
    root: Path,
    make: Callable[[], MadeRows],
    notify: Callable[[str], None],
    label: str,
) -> MadeRows:
    """Read the rows that are kept under ``key``; make and keep them first if there are none.

    Args:
        key: names everything that the rows depend on.
        root: the folder of caches.
        make: makes the rows.
        notify: receives a line when rows are about to be made, or made again.
        label: what is made, for that line.

    Raises:
        ConfigError: the folder cannot be written.
    """
    path = root / "rows" / f"{key}.jsonl"
    if path.is_file():
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            notify(f"The rows in {path} are damaged ({error}): they are made again.")
    notify(f"Generating {label} into {path}, once.")
    made = make()
    try:
        _write(path, made)
    except OSError as error:
        raise ConfigError(
            f"the folder for generated rows cannot be written: {error.strerror}",
            where=str(path.parent),
            way_out="set data.cache_dir, or the environment variable REFINE_PL_CACHE",
        ) from error
    return made


def _read(path: Path) -> MadeRows:
    with path.open(encoding="utf-8") as lines:
        header = json.loads(next(lines, ""))
        rows = [_row(json.loads(line)) for line in lines]
    if header["format"] != FORMAT or header["rows"] != len(rows):
        raise ValueError(f"{len(rows)} rows where {header['rows']} belong")
    if header["hash"] != rows_hash(rows):
        raise ValueError("the rows are not those that were written")
    return MadeRows(rows, header["notes"])


def _row(values: dict[str, object]) -> TaskRow:
    answers: Sequence[str] = values.pop("answers")  # type: ignore[assignment]
    return TaskRow(answers=tuple(answers), **values)  # type: ignore[arg-type]


def _write(path: Path, made: MadeRows) -> None:
    header = {
        "format": FORMAT,
        "rows": len(made.rows),
        "hash": rows_hash(made.rows),
        "notes": made.notes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=".building-", encoding="utf-8", delete=False
    ) as file:
        try:
            for record in (header, *(row._asdict() for row in made.rows)):
                file.write(json.dumps(record) + "\n")
            file.close()
            os.chmod(file.name, 0o644)  # a shared cache is read by others
            os.replace(file.name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(file.name)
            raise
