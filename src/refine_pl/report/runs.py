"""Which folders a report is about."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from refine_pl.errors import DataError
from refine_pl.report.reading import Run, holds, is_run, read_run
from refine_pl.training.run_folder import CHECKPOINTS, CONFIG

_KINDS = (
    "a run folder of refine-pl fit (event files, summary.json, rollouts.jsonl), of refine-pl test "
    "(answers.jsonl, scores.json, card.json), or of a sweep (sweep.json)"
)
_NAMED = 8  # folders in a message
_DEPTH = 3  # folders below the given one that are searched for runs


def open_runs(folders: Sequence[str]) -> list[Run]:
    """Read the folders, in the order in which they were given.

    Raises:
        DataError: a folder is not there, is not a run, is named twice, or a file in it is damaged.
    """
    paths = [Path(folder) for folder in folders]
    for path in paths:
        _check(path)
    real = [path.resolve() for path in paths]
    for i, path in enumerate(real):
        if path in real[:i]:
            raise DataError(
                f"{folders[i]} is named twice", where="RUN", way_out="name every folder once"
            )
    named = zip(labels(real), paths, strict=True)
    return [read_run(i, label, path) for i, (label, path) in enumerate(named)]


def labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ; ``version_N`` never stands alone."""
    found = []
    for folder in folders:
        parts = [part for part in folder.parts if part != os.sep]
        others = [other.parts for other in folders if other != folder]
        least = 2 if folder.name.startswith("version_") else 1
        for length in range(min(least, len(parts)), len(parts) + 1):
            tail = folder.parts[-length:]
            if all(other[-length:] != tail for other in others):
                break
        found.append("/".join(parts[-length:]))
    return found


def runs_below(folder: Path) -> list[Path]:
    """Run folders inside ``folder``, oldest version first."""
    found: list[Path] = []
    level = [folder]
    for _ in range(_DEPTH):
        below = [p for parent in level for p in sorted(parent.iterdir(), key=_order) if p.is_dir()]
        runs = [path for path in below if is_run(path)]
        found += runs
        level = [path for path in below if path not in runs and path.name != CHECKPOINTS]
    return found


def _check(folder: Path) -> None:
    if not folder.exists():
        parent = next((p for p in folder.parents if p.is_dir()), Path("."))
        inside = [] if parent == Path(".") else runs_below(parent)
        raise DataError(
            f"there is no folder {folder}",
            where="RUN",
            way_out=f"runs in {parent}: {_list(inside)}" if inside else f"ls {parent}",
        )
    if not folder.is_dir():
        raise DataError(
            f"{folder} is a file",
            where="RUN",
            allowed=_KINDS,
            way_out=f"refine-pl report {folder.parent}",
        )
    if is_run(folder):
        return
    inside = runs_below(folder)
    if inside:
        raise DataError(
            f"{folder} is not a run itself but holds {len(inside)}: {_list(inside)}",
            where="RUN",
            way_out=f"name those you mean: refine-pl report {inside[-1]}",
        )
    config = f" (it has a {CONFIG}, but the run logged nothing)"
    raise DataError(
        f"{folder} is not a run folder" + (config if holds(folder, CONFIG) else ""),
        where="RUN",
        allowed=_KINDS,
    )


def _list(folders: Sequence[Path]) -> str:
    more = f", and {len(folders) - _NAMED} more" if len(folders) > _NAMED else ""
    return ", ".join(map(str, folders[:_NAMED])) + more


def _order(path: Path) -> tuple[str, int, str]:
    stem, _, number = path.name.rpartition("_")
    return (stem, int(number), "") if number.isdigit() else (path.name, -1, "")
