"""Which folders a report is about, and what is read of each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from refine_pl.errors import DataError
from refine_pl.report.page import Block, Cell, Heading
from refine_pl.report.scalars import Scalars, read_scalars
from refine_pl.sweep.overlays import natural
from refine_pl.training.record_files import (
    damaged,
    read_json,
    read_record,
    read_records,
    read_yaml,
)
from refine_pl.training.run_folder import (
    ANSWERS,
    CARD,
    CONFIG,
    ENTROPY,
    EVALUATION_FILES,
    EVENTS,
    PREDICTIONS,
    ROLLOUTS,
    SCORES,
    SUMMARY,
    SWEEP,
    TRAINING_FILES,
    Answer,
    EntropyMap,
    Position,
    Scores,
    Summary,
    SweepIndex,
)

T = TypeVar("T")
_KINDS = (
    "a run folder of refine-pl fit (event files, summary.json, rollouts.jsonl), of refine-pl test "
    "(answers.jsonl, scores.json, card.json), or of a sweep (sweep.json)"
)
_NAMED = 8  # folders in a message
_BELOW = ("*", "*/*", "*/*/*")  # where runs are looked for in a folder that is not one


@dataclass(slots=True)
class Run:
    """What a folder holds; what is not there is empty."""

    index: int  # its colour
    label: str  # short, and different from all others
    folder: Path
    kinds: list[str] = field(default_factory=list)  # of training, evaluation
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what is missing
    # Of training.
    scalars: Scalars = field(default_factory=Scalars)
    summary: Summary = field(default_factory=lambda: Summary([]))
    positions: list[Position] = field(default_factory=list)
    entropy: list[EntropyMap] = field(default_factory=list)
    # Of an evaluation.
    answers: list[Answer] = field(default_factory=list)
    scores: Scores = field(default_factory=lambda: Scores(0, []))
    card: dict[str, Any] = field(default_factory=dict)

    sweep: SweepIndex | None = None

    @property
    def name(self) -> Cell:
        """Its label with its colour."""
        return Cell(self.label, run=self.index)


def of_each(
    runs: Sequence[Run], blocks: Callable[[Run], Iterable[Block]], intro: str = ""
) -> Iterator[Block]:
    """Blocks of each run, below its name where there are several."""
    if runs and intro:
        yield intro
    for run in runs:
        if len(runs) > 1:
            yield Heading(run.label, run.index)
        yield from blocks(run)


def holds(folder: Path, *patterns: str) -> bool:
    """Whether one of the files is there."""
    return any(any(folder.glob(pattern)) for pattern in patterns)


def is_run(folder: Path) -> bool:
    """Whether ``fit``, ``test``, ``predict`` or ``sweep`` has written something into ``folder``."""
    return holds(folder, SWEEP, *EVALUATION_FILES, *TRAINING_FILES, EVENTS)


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
    return [read_run(i, *named) for i, named in enumerate(zip(labels(real), paths, strict=True))]


def labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ; ``version_N`` never stands alone."""
    found = []
    for folder in folders:
        number = len(folder.parts)
        least = 2 if folder.name.startswith("version_") else 1
        for length in range(min(least, number), number + 1):
            tail = folder.parts[-length:]
            if [other.parts[-length:] for other in folders].count(tail) == 1:
                break
        found.append("/".join(part for part in tail if part != os.sep))
    return found


def runs_below(folder: Path) -> list[Path]:
    """Run folders inside ``folder``, but not inside of each other; oldest version first."""
    found: list[Path] = []
    for pattern in _BELOW:
        for path in sorted(folder.glob(pattern), key=natural):
            if is_run(path) and not any(run in path.parents for run in found):
                found.append(path)
    return found


def read_run(index: int, label: str, folder: Path) -> Run:
    """Read a run folder.

    Raises:
        DataError: a file is damaged, or nothing in the folder can be reported.
    """
    run = Run(index, label, folder)
    if holds(folder, SWEEP):
        run.sweep = read_record(folder / SWEEP, SweepIndex)
        if not run.sweep.entries:
            raise damaged("the sweep has no entries", folder / SWEEP)
        return run
    run.config = _part(run, CONFIG, read_yaml, ": settings are not known") or {}
    evaluated = holds(folder, *EVALUATION_FILES)
    # A test run's logger writes event files too.
    if holds(folder, *TRAINING_FILES) or not evaluated:
        run.kinds.append("training")
        _read_training(run)
    if evaluated:
        run.kinds.append("evaluation")
        _read_evaluation(run)
    found = (run.scalars.curves, run.summary.validations, run.positions)
    if not any((*found, run.answers, run.scores.results)):
        raise DataError(
            f"{folder} holds nothing to report: {' '.join(run.notes)}",
            where="RUN",
            way_out="if the run was stopped before its first iteration, start it again",
        )
    return run


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


def _part(run: Run, name: str, read: Callable[[Path], T], without: str) -> T | None:
    """A file of a run, if it is there; a note if it is not."""
    if holds(run.folder, name):
        return read(run.folder / name)
    run.notes.append(f"There is no {name}{without}.")
    return None


def _lines(run: Run, kind: type[T], file: Path) -> list[T]:
    records, note = read_records(file, kind)
    run.notes += [note] if note else []
    return records


def _read_training(run: Run) -> None:
    run.scalars = read_scalars(run.folder)
    run.notes += run.scalars.notes
    if not holds(run.folder, EVENTS):
        run.notes.append("There are no TensorBoard event files, and so no curves.")
    elif not run.scalars.curves:
        run.notes.append("The event files hold no scalars, and so there are no curves.")
    summary = partial(read_record, kind=Summary)
    without = " (callback RunSummary): no validation tables"
    run.summary = _part(run, SUMMARY, summary, without) or run.summary
    without = " (callback RolloutRecorder): no "
    positions, maps = partial(_lines, run, Position), partial(_lines, run, EntropyMap)
    run.positions = _part(run, ROLLOUTS, positions, without + "rollouts") or []
    run.entropy = _part(run, ENTROPY, maps, without + "entropy maps") or []


def _read_evaluation(run: Run) -> None:
    name = next((name for name in (ANSWERS, PREDICTIONS) if holds(run.folder, name)), ANSWERS)
    without = ": no answers, and no comparison with other runs"
    run.answers = _part(run, name, partial(_lines, run, Answer), without) or []
    ids = Counter(answer.id for answer in run.answers)
    twice = next((name for name, number in ids.items() if number > 1), None)
    if twice is not None:
        raise damaged(f"the row {twice!r} is there twice", run.folder / name)
    run.card = _part(run, CARD, read_json, ": model, decoding and data are not known") or {}
    if holds(run.folder, SCORES):
        run.scores = read_record(run.folder / SCORES, Scores)
        if run.card.get("finished", "") is None:
            run.notes.append("The evaluation did not end: scores are of the rows answered so far.")
        if run.answers and run.scores.rows != len(run.answers):
            run.notes.append(
                f"{SCORES} is about {run.scores.rows:,} rows, {ANSWERS} has "
                f"{len(run.answers):,}: the two files are not of the same evaluation."
            )
    elif any(answer.score is not None for answer in run.answers):
        run.notes.append(
            f"There is no {SCORES}: the evaluation did not end. {len(run.answers):,} rows are "
            "answered; start it again with the same folder to go on."
        )
