"""A run: a folder, and what was read of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from refine_pl.errors import DataError
from refine_pl.report.page import Cell
from refine_pl.report.scalars import Scalars, read_scalars
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


def holds(folder: Path, *patterns: str) -> bool:
    """Whether one of the files is there."""
    return any(any(folder.glob(pattern)) for pattern in patterns)


def is_run(folder: Path) -> bool:
    """Whether ``fit``, ``test``, ``predict`` or ``sweep`` has written something into ``folder``."""
    return holds(folder, SWEEP, *EVALUATION_FILES, *TRAINING_FILES, EVENTS)


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
    if holds(folder, CONFIG):
        run.config = read_yaml(folder / CONFIG)
    else:
        run.notes.append(f"There is no {CONFIG}: settings are not known.")
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


def _read_training(run: Run) -> None:
    run.scalars = read_scalars(run.folder)
    run.notes += run.scalars.notes
    if not holds(run.folder, EVENTS):
        run.notes.append("There are no TensorBoard event files, and so no curves.")
    elif not run.scalars.curves:
        run.notes.append("The event files hold no scalars, and so there are no curves.")
    if holds(run.folder, SUMMARY):
        run.summary = read_record(run.folder / SUMMARY, Summary)
    else:
        run.notes.append(f"There is no {SUMMARY} (callback RunSummary): no validation tables.")
    run.positions = _recorded(run, ROLLOUTS, Position, "no rollouts")
    run.entropy = _recorded(run, ENTROPY, EntropyMap, "no entropy maps")


def _recorded(run: Run, name: str, kind: type[T], without: str) -> list[T]:
    if not holds(run.folder, name):
        run.notes.append(f"There is no {name} (callback RolloutRecorder): {without}.")
        return []
    return _lines(run, name, kind)


def _lines(run: Run, name: str, kind: type[T]) -> list[T]:
    records, note = read_records(run.folder / name, kind)
    run.notes += [note] if note else []
    return records


def _read_evaluation(run: Run) -> None:
    name = next((name for name in (ANSWERS, PREDICTIONS) if holds(run.folder, name)), None)
    if name is None:
        run.notes.append(f"There is no {ANSWERS}: no answers, and no comparison with other runs.")
    else:
        run.answers = _lines(run, name, Answer)
        seen: set[str] = set()
        for answer in run.answers:
            if answer.id in seen:
                raise damaged(f"the row {answer.id!r} is there twice", run.folder / name)
            seen.add(answer.id)
    if holds(run.folder, CARD):
        run.card = read_json(run.folder / CARD)
    else:
        run.notes.append(f"There is no {CARD}: model, decoding and data are not known.")
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
