"""``comparison.json``: what a comparison found."""

from __future__ import annotations

from dataclasses import dataclass, field

COMPARISON = "comparison.json"  # Comparison


@dataclass(frozen=True, slots=True)
class Difference:
    """A measure of two arms, in the unit of the log."""

    name: str  # of the log: val/ntp_loss
    arm: float  # mean over documents and seeds
    base: float
    difference: float
    low: float
    high: float
    by_seed: list[float]  # differences

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves 0 out, else 0."""
        return (self.low > 0) - (self.high < 0)


@dataclass(frozen=True, slots=True)
class Sample:
    """A rollout from one place of a held-out document, the same for all."""

    document: str
    prefix: str
    target: str
    before: str  # what the start drew
    arm: str
    base: str


@dataclass(frozen=True, slots=True)
class ArmResult:
    """An arm against the baseline."""

    arm: str  # its name
    base: str  # of the baseline
    measures: list[Difference]
    temperatures: list[float] = field(default_factory=list)  # of the baseline, for each seed
    control: list[Difference] = field(default_factory=list)  # against it at these temperatures
    longer: str | None = None  # the baseline with as much computing, if it was run
    longer_measures: list[Difference] = field(default_factory=list)
    sample: Sample | None = None
    cost: float | None = None  # of an update, in plain ones of as many sequences, by tokens read


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arms from one start, against step-matched next-token training."""

    start: str
    seeds: list[int]
    documents: int
    level: float
    arms: list[ArmResult]
