"""The run folder of an evaluation: lines as answers come, and what an earlier session left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from refine_pl.callbacks.evaluation_card import differences
from refine_pl.errors import ConfigError, DataError
from refine_pl.parsing import parse_json
from refine_pl.training.record_files import (
    append_records,
    as_line,
    read_json,
    replace_file,
    write_json,
)
from refine_pl.training.run_folder import ANSWERS, CARD, CHECKPOINTS, CONFIG, PREDICTIONS

Line = dict[str, Any]

_SHOWN = 6


def next_free_folder(root: Path) -> Path:
    """``root/version_<n>`` with the first number after all that are taken."""
    numbers = [path.name.removeprefix("version_") for path in root.glob("version_*")]
    taken = [int(number) for number in numbers if number.isdecimal()]
    return root / f"version_{max(taken, default=-1) + 1}"


class EvaluationFolder:
    """The answers of all processes, and the card.

    The first process appends to ``answers.jsonl``, process ``r`` to ``answers.rank<r>.jsonl``.
    Every batch is one write, so a run that is killed loses at most the batch that it was writing.

    Args:
        path: the folder; made when something is written.
        stage: ``test`` or ``predict``.

    Attributes:
        earlier: the card of an earlier session, or None.

    Raises:
        ConfigError: it is a file, holds another run, or answers that nothing is known about.
        DataError: its card is damaged.
    """

    def __init__(self, path: Path, stage: str) -> None:
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file", where="--out", allowed="a folder")
        self.path = path
        self._name = ANSWERS if stage == "test" else PREDICTIONS
        has_card = (path / CARD).is_file()
        self.earlier = read_json(path / CARD) if has_card else None
        others = [name for name in (CONFIG, self._name, CHECKPOINTS) if (path / name).exists()]
        if others and not has_card:
            raise ConfigError(
                f"{path} holds {others[0]} of another run, and no {CARD} of an evaluation",
                where="--out",
                allowed="a new folder, or that of an evaluation that goes on",
            )

    def refuse_another(self, card: Mapping[str, Any]) -> None:
        """Refuse to add answers to those of a different evaluation.

        Raises:
            ConfigError: saying what differs.
        """
        found = [] if self.earlier is None else differences(self.earlier, card)
        if found:
            more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise ConfigError(
                f"this is not the evaluation that {self.path} holds: "
                f"{'; '.join(found[:_SHOWN])}{more}",
                where="--out",
                allowed="the same model, data, decoding and test-time training",
                way_out="another --out starts a new evaluation",
            )

    def write_card(self, card: Mapping[str, Any]) -> None:
        """Replace the card."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / CARD, card)

    def append(self, lines: Iterable[Line], rank: int = 0) -> None:
        """Write lines at the end of a process's file."""
        name = Path(self._name)
        append_records(self.path / (name if rank == 0 else f"{name.stem}.rank{rank}.jsonl"), lines)

    def lines(self) -> list[Line]:
        """The lines of all processes; a row that is there twice counts once.

        Raises:
            DataError: a line other than the last one of a file is damaged.
        """
        lines: dict[str, Line] = {}
        for line in chain.from_iterable(map(_read, self._files())):
            lines.setdefault(line["id"], line)
        return list(lines.values())

    def rewrite(self, lines: Iterable[Line]) -> None:
        """Replace what all processes wrote by one file; there is a whole one at any moment."""
        self.path.mkdir(parents=True, exist_ok=True)
        replace_file(self.path / self._name, "".join(map(as_line, lines)))
        for file in self._files():
            if file.name != self._name:
                file.unlink()

    def _files(self) -> list[Path]:
        others = sorted(self.path.glob(f"{Path(self._name).stem}.rank*.jsonl"))
        first = self.path / self._name
        return [first, *others] if first.is_file() else others


def complete_batches(ids: Sequence[str], answered: set[str], size: int) -> set[str]:
    """Those of the ``answered`` rows whose whole batch of ``size`` rows is answered."""
    batches = [ids[start : start + size] for start in range(0, len(ids), size)]
    return {row for batch in batches if answered.issuperset(batch) for row in batch}


def _read(file: Path) -> list[Line]:
    """The lines of one file without a last one that was cut off."""
    *whole, _cut_off = file.read_bytes().split(b"\n")
    lines = []
    for number, text in enumerate(whole, 1):
        found: Any = None
        with contextlib.suppress(ValueError):
            found = parse_json(text)
        if not isinstance(found, dict) or not isinstance(found.get("id"), str):
            raise DataError(
                f"line {number} of {file.name} is damaged",
                where=str(file),
                allowed="one JSON object with an id on each line",
                way_out="take the line out: its row is then answered again",
            )
        lines.append(found)
    return lines
