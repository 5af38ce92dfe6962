"""What a training run left behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from refine_pl.report.entropy import EntropyMap
from refine_pl.report.files import Fields, read_json, read_lines
from refine_pl.report.scalars import EVENTS, Scalars, read_scalars

SUMMARY, ROLLOUTS, ENTROPY = "summary.json", "rollouts.jsonl", "entropy.jsonl"


@dataclass(frozen=True, slots=True)
class Validation:
    """The numbers of one validation."""

    label: str | None  # such as "after warm-up"
    iteration: int
    metrics: dict[str, float]

    @property
    def name(self) -> str:
        """What a column is called."""
        return self.label or f"iteration {self.iteration}"


@dataclass(frozen=True, slots=True)
class Rollout:
    """A sampled continuation."""

    text: str
    reward: float
    parts: dict[str, float]
    advantage: float


@dataclass(frozen=True, slots=True)
class Position:
    """A line of ``rollouts.jsonl``."""

    iteration: int
    document: str
    position: int
    prefix: str
    target: str
    rollouts: list[Rollout]


@dataclass(slots=True)
class Training:
    """A training run."""

    scalars: Scalars
    validations: list[Validation]
    positions: list[Position]
    entropy: list[EntropyMap]
    notes: list[str] = field(default_factory=list)


def is_training(folder: Path) -> bool:
    """Whether ``folder`` holds what ``refine-pl fit`` writes."""
    return has_training_files(folder) or any(folder.glob(EVENTS))


def has_training_files(folder: Path) -> bool:
    """Whether one of the files is there that only training writes."""
    return any((folder / name).is_file() for name in (SUMMARY, ROLLOUTS, ENTROPY))


def read_training(folder: Path) -> Training:
    """Read a run folder.

    Raises:
        DataError: a file is damaged.
    """
    run = Training(read_scalars(folder), [], [], [])
    run.notes += run.scalars.notes
    if not any(folder.glob(EVENTS)):
        run.notes.append("There are no TensorBoard event files, and so no curves.")
    elif not run.scalars.curves:
        run.notes.append("The event files hold no scalars, and so there are no curves.")
    if (folder / SUMMARY).is_file():
        run.validations = read_validations(folder / SUMMARY)
    else:
        run.notes.append(f"There is no {SUMMARY} (callback RunSummary): no validation tables.")
    rows = _lines(folder / ROLLOUTS, run.notes, "no rollouts")
    run.positions = [_position(row) for row in rows]
    rows = _lines(folder / ENTROPY, run.notes, "no entropy maps")
    run.entropy = [_entropy(row) for row in rows]
    return run


def _lines(file: Path, notes: list[str], without: str) -> list[Fields]:
    if not file.is_file():
        notes.append(f"There is no {file.name} (callback RolloutRecorder): {without}.")
        return []
    rows, note = read_lines(file)
    notes += [note] if note else []
    return rows


def read_validations(file: Path) -> list[Validation]:
    """The validations of a ``summary.json``; a :class:`DataError` if it is damaged."""
    entries = Fields(read_json(file), str(file)).objects("validations")
    return [
        Validation(
            entry.get("label", str, type(None)),
            entry.get("iteration", int),
            entry.mapping("metrics"),
        )
        for entry in entries
    ]


def _position(row: Fields) -> Position:
    rollouts = [
        Rollout(
            rollout.get("text", str),
            rollout.number("reward"),
            rollout.mapping("parts"),
            rollout.number("advantage"),
        )
        for rollout in row.objects("rollouts")
    ]
    return Position(
        row.get("iteration", int),
        row.get("document", str),
        row.get("position", int),
        row.get("prefix", str),
        row.get("target", str),
        rollouts,
    )


def _entropy(row: Fields) -> EntropyMap:
    entropy, smoothed = row.numbers("entropy"), row.numbers("smoothed")
    if len(entropy) != len(smoothed):
        raise row.error("entropy and smoothed have unequal lengths")
    scored = [int(token) for token in row.numbers("scored")]
    if any(not 0 <= token < len(entropy) for token in scored):
        raise row.error("scored names tokens that the document does not have")
    return EntropyMap(
        row.get("iteration", int),
        row.get("document", str),
        entropy,
        smoothed,
        [int(position) for position in row.numbers("positions")],
        scored,
        [int(border) for border in row.numbers("borders")],
    )
