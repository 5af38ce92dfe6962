"""What a validation draws and how it judges: settings of its own, the same for every arm."""

from __future__ import annotations

from dataclasses import dataclass, field

from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from refine_pl.errors import ConfigError
from refine_pl.parts import EVEN
from refine_pl.records import RolloutPlan
from refine_pl.selectors import PositionSelector


@dataclass(frozen=True)
class ValidationPlan:
    """How held-out documents are measured. No overlay, stage or seed of a run changes it.

    Runs with the same plan and the same held-out documents can be compared: they start rollouts at
    the same positions, with the same random numbers.

    Args:
        selector: where rollouts start; the middle of each segment if left out.
        num_segments: equal slices of a document.
        rollouts_per_position: rollouts drawn from each position.
        rollout_length: tokens of a rollout.
        match_lengths: the expected exact match is also given for so many first tokens of rollouts.
        temperature: of the model: every number is that of its logits divided by it.
        seed: names the random numbers of rollouts.
        yardstick: keep a frozen copy of the model as it was when the stage began, and judge
            rollouts by its hidden states; without it by the model's own, which move.
    """

    selector: PositionSelector = field(default_factory=lambda: EVEN)
    num_segments: PositiveInt = 16
    rollouts_per_position: PositiveInt = 4
    rollout_length: PositiveInt = 5
    match_lengths: list[PositiveInt] = field(default_factory=list)
    temperature: PositiveFloat = 1.0
    seed: NonNegativeInt = 0
    yardstick: bool = True

    def __post_init__(self) -> None:
        """Refuse match lengths that rollouts do not reach."""
        for length in self.match_lengths:
            if length >= self.rollout_length:
                raise ConfigError(
                    f"match_lengths has {length}, and rollouts have {self.rollout_length} tokens",
                    where="model.validation.match_lengths",
                    allowed="lengths below model.validation.rollout_length",
                )

    @property
    def rollouts(self) -> RolloutPlan:
        """How many rollouts, and how long."""
        return RolloutPlan(self.num_segments, self.rollouts_per_position, self.rollout_length)


PLAN = ValidationPlan()
"""What is measured unless something else is asked for."""
