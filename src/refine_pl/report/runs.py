"""Which folders a report is about."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refine_pl.errors import DataError
from refine_pl.report.answers import Evaluation, is_evaluation, read_evaluation
from refine_pl.report.files import read_yaml
from refine_pl.report.sweep import Sweep, is_sweep, read_sweep
from refine_pl.report.training import Training, has_training_files, is_training, read_training

CONFIG = "config.yaml"
_KINDS = (
    "a run folder of refine-pl fit (event files, summary.json, rollouts.jsonl), of refine-pl test "
    "(answers.jsonl, scores.json, card.json), or of a sweep (sweep.json)"
)
_NAMED = 8  # folders in a message
_DEPTH = 3  # folders below the given one that are searched for runs


@dataclass(slots=True)
class Run:
    """A folder and what was read of it."""

    index: int  # its colour
    label: str  # short, and different from all others
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    training: Training | None = None
    evaluation: Evaluation | None = None
    sweep: Sweep | None = None
    notes: list[str] = field(default_factory=list)


def open_runs(folders: Sequence[str]) -> list[Run]:
    """Read the folders, in the order in which they were given.

    Raises:
        DataError: a folder is not there, is no run, is named twice, or a file in it is damaged.
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
    return [_open(i, label, path) for i, (label, path) in enumerate(named)]


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


def _open(index: int, label: str, folder: Path) -> Run:
    run = Run(index, label, folder)
    if is_sweep(folder):
        run.sweep = read_sweep(folder)
        return run
    if (folder / CONFIG).is_file():
        run.config = read_yaml(folder / CONFIG)
    else:
        run.notes.append(f"There is no {CONFIG}: settings are not known.")
    if is_evaluation(folder):
        run.evaluation = read_evaluation(folder)
        run.notes += run.evaluation.notes
    # A test run's logger writes event files too.
    if has_training_files(folder) or (run.evaluation is None and is_training(folder)):
        run.training = read_training(folder)
        run.notes += run.training.notes
    if not _holds_something(run):
        raise DataError(
            f"{run.folder} holds nothing to report: " + " ".join(run.notes),
            where="RUN",
            allowed=_KINDS,
            way_out="if the run was stopped before its first iteration, start it again",
        )
    return run


def _holds_something(run: Run) -> bool:
    training, evaluation = run.training, run.evaluation
    if training and (training.scalars.curves or training.validations or training.positions):
        return True
    return evaluation is not None and bool(evaluation.answers or evaluation.results)


def _check(folder: Path) -> None:
    if not folder.exists():
        parent = next((p for p in folder.parents if p.is_dir()), Path("."))
        raise DataError(
            f"there is no folder {folder}",
            where="RUN",
            way_out=_suggestion(parent) or f"ls {parent}",
        )
    if not folder.is_dir():
        raise DataError(
            f"{folder} is a file",
            where="RUN",
            allowed=_KINDS,
            way_out=f"refine-pl report {folder.parent}",
        )
    if is_sweep(folder) or is_evaluation(folder) or is_training(folder):
        return
    inside = runs_below(folder)
    if inside:
        shown = ", ".join(str(path) for path in inside[:_NAMED])
        more = f", and {len(inside) - _NAMED} more" if len(inside) > _NAMED else ""
        raise DataError(
            f"{folder} is no run itself but holds {len(inside)}: {shown}{more}",
            where="RUN",
            way_out=f"name those you mean: refine-pl report {inside[-1]}",
        )
    config = " (it has a config.yaml, but the run logged nothing)"
    raise DataError(
        f"{folder} is no run folder" + (config if (folder / CONFIG).is_file() else ""),
        where="RUN",
        allowed=_KINDS,
    )


def runs_below(folder: Path) -> list[Path]:
    """Run folders inside ``folder``, oldest version first."""
    found: list[Path] = []
    level = [folder]
    for _ in range(_DEPTH):
        below = [p for parent in level for p in sorted(parent.iterdir(), key=_order) if p.is_dir()]
        runs = [p for p in below if is_sweep(p) or is_evaluation(p) or is_training(p)]
        found += runs
        level = [p for p in below if p not in runs and p.name != "checkpoints"]
    return found


def _order(path: Path) -> tuple[str, int, str]:
    stem, _, number = path.name.rpartition("_")
    return (stem, int(number), "") if number.isdigit() else (path.name, -1, "")


def _suggestion(parent: Path) -> str:
    if parent == Path(".") or not parent.is_dir():
        return ""
    inside = runs_below(parent)
    return f"runs in {parent}: " + ", ".join(map(str, inside[:_NAMED])) if inside else ""
