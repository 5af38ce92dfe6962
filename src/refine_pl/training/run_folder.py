"""What lies in a run folder: the names of its files, and what they hold.

The files are read and written by :mod:`~refine_pl.training.record_files`: the fields of a record
are the keys in its file. Nothing here needs Lightning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIG = "config.yaml"  # the resolved settings of a run
CHECKPOINTS = "checkpoints"  # the folder of them
EVENTS = "events.out.tfevents.*"  # TensorBoard's files
CURVES = "metrics.csv"  # of CSVLogger
SUMMARY = "summary.json"  # Summary
HELD_OUT = "held_out.jsonl"  # a HeldOut on each line
ROLLOUTS = "rollouts.jsonl"  # a Position on each line
ENTROPY = "entropy.jsonl"  # an EntropyMap on each line
ANSWERS = "answers.jsonl"  # of refine-pl test: an Answer on each line
PREDICTIONS = "predictions.jsonl"  # of refine-pl predict: an Answer without references and score
SCORES = "scores.json"  # Scores
CARD = "card.json"  # what an evaluation was made with
SWEEP = "sweep.json"  # SweepIndex

TRAINING_FILES = (SUMMARY, HELD_OUT, ROLLOUTS, ENTROPY)  # only training writes them
EVALUATION_FILES = (ANSWERS, PREDICTIONS, SCORES, CARD)


@dataclass(frozen=True, slots=True)
class Validation:
    """The numbers of one validation."""

    label: str | None  # such as "after warm-up"; None inside a stage
    iteration: int
    metrics: dict[str, float]

    @property
    def name(self) -> str:
        """What a column is called."""
        return self.label or f"iteration {self.iteration}"


@dataclass(frozen=True, slots=True)
class Summary:
    """The validations of a run, in their order."""

    validations: list[Validation]

    def at_borders(self) -> list[Validation]:
        """Those at the borders of stages, and always the last; without borders also the first."""
        some = [validation for validation in self.validations if validation.label]
        some = some or self.validations[:1]
        last = self.validations[-1:]
        return some if some[-1:] == last else [*some, *last]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a validation measured of one held-out sequence."""

    row: int  # names the sequence; the same in every run with these held-out documents
    document: str  # its name; several sequences may come from one
    num_tokens: int
    positions: int  # where rollouts started
    values: dict[str, float]  # means over the sequence, by the names of the log
    match_by_token: list[float] = field(default_factory=list)  # L, probability of true tokens
    prefix: str = ""  # the last tokens before one of the positions
    target: str = ""  # the true continuation
    rollout: str = ""  # the first of those drawn there
    iteration: int = 0
    label: str | None = None  # such as "after warm-up"; None inside a stage


@dataclass(frozen=True, slots=True)
class Rollout:
    """A sampled continuation."""

    text: str
    reward: float  # the weighted sum
    parts: dict[str, float]  # each reward before its weight
    advantage: float


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a document where rollouts started."""

    iteration: int  # from 1
    document: str  # its name
    position: int  # index of the first rollout token
    prefix: str  # the last tokens before it
    target: str  # the true continuation
    rollouts: list[Rollout]


@dataclass(frozen=True, slots=True)
class EntropyMap:
    """Entropy along one document. Letters: ``T`` tokens of the document, ``P`` positions of it."""

    iteration: int  # from 1
    document: str  # its name
    entropy: list[float]  # T, nats; entropy[t] is that of the token after t
    smoothed: list[float]  # T, nats, as the selector scores them
    positions: list[int]  # P, index of the first rollout token
    scored: list[int]  # P, the token whose smoothed entropy stands for the position
    borders: list[int]  # first tokens of all segments but the first; empty without segments

    def __post_init__(self) -> None:
        """Refuse lists that do not belong together."""
        if len(self.entropy) != len(self.smoothed):
            raise ValueError("entropy and smoothed have unequal lengths")
        if any(not 0 <= token < len(self.entropy) for token in self.scored):
            raise ValueError("scored names tokens that the document does not have")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered to a row, and how good that was."""

    id: str
    output: str
    num_tokens: int  # of the output
    prompt_tokens: int
    cut_tokens: int  # taken out of the middle of the prompt
    finish: str  # eos, stop or length
    task: str = ""
    length: int | None = None  # of the set that the row belongs to, tokens
    references: list[str] = field(default_factory=list)
    score: float | None = None  # by the released rule; None where nothing scores it

    def __post_init__(self) -> None:
        """Refuse a score that is not in [0, 1]."""
        if self.score is not None and not 0 <= self.score <= 1:
            raise ValueError(f"score is {self.score}: it lies between 0 and 1")


@dataclass(frozen=True, slots=True)
class Result:
    """The mean of one rule over the rows of one task and length, percent."""

    task: str
    length: int | None
    rule: str
    rows: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Average:
    """The mean of the means of several tasks, percent."""

    name: str
    tasks: int
    rows: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ScoreInterval:
    """How the intervals were made."""

    level: float
    resamples: int
    method: str


@dataclass(frozen=True, slots=True)
class Scores:
    """All numbers of an evaluation."""

    rows: int
    results: list[Result]  # the released rule of a task comes before its further ones
    averages: list[Average] = field(default_factory=list)
    interval: ScoreInterval | None = None

    def result(self, task: str, length: int | None) -> Result | None:
        """By the released rule, which is the first one."""
        return next((r for r in self.results if (r.task, r.length) == (task, length)), None)

    def average(self, name: str, tasks: int) -> Average | None:
        """That of a number of tasks, if all of them were asked."""
        return next((a for a in self.averages if (a.name, a.tasks) == (name, tasks)), None)


@dataclass(slots=True)
class SweepTest:
    """The evaluation after a run of a sweep."""

    folder: str  # from the sweep's
    status: str = "pending"  # pending, running, interrupted, done, failed
    seconds: float | None = None  # of all attempts
    error: str | None = None


@dataclass(slots=True)
class SweepEntry:
    """One run of a sweep."""

    overlay: str
    group: str
    seed: int
    run: str  # its folder, from the sweep's
    status: str = "pending"  # pending, running, interrupted, done, failed
    seconds: float | None = None  # of all attempts
    error: str | None = None
    test: SweepTest | None = None

    @property
    def label(self) -> str:
        """Its overlay and group: ``reward/exact_match``."""
        return f"{self.group}/{self.overlay}"


@dataclass(slots=True)
class SweepOverlay:
    """One variant of the recipe of a sweep."""

    overlay: str  # the name of its file without the ending
    group: str  # what it is compared within: the name of the file's folder
    file: str | None  # the configuration; None for the recipe as it is
    changes: dict[str, Any] = field(default_factory=dict)  # settings by dotted key
    options: list[str] = field(default_factory=list)  # that come last

    @property
    def label(self) -> str:
        """``reward/exact_match``."""
        return f"{self.group}/{self.overlay}"


@dataclass(frozen=True, slots=True)
class SweepBase:
    """The recipe of a sweep."""

    configs: list[str]
    options: list[str] = field(default_factory=list)
    resolved: dict[str, Any] = field(default_factory=dict)  # by dotted key; seeds left out


@dataclass(slots=True)
class SweepIndex:
    """What a sweep is made of, and how far it has come."""

    base: SweepBase
    entries: list[SweepEntry]  # in the order in which they are run
    evaluation: str | None = None  # configuration of a test after each run
    overlays: list[SweepOverlay] = field(default_factory=list)


def folder_of(checkpoint: str | Path) -> Path:
    """The run folder that a checkpoint lies in."""
    return Path(checkpoint).absolute().parent.parent


def stages_of(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The stages of the schedule in the settings of a run, by name; empty without a schedule."""
    callbacks = (config.get("trainer") or {}).get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    for spec in (config.get("schedule"), *callbacks):
        if isinstance(spec, Mapping):
            stages = (spec.get("init_args") or spec).get("stages")
            if stages:
                return dict(stages)
    return {}
