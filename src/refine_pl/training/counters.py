"""What a run has done so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class Counters:
    """Counts since the start of a run, resumed ones included."""

    iteration: int = 0  # batches that are finished
    updates: int = 0  # optimizer steps, skipped ones included
    skipped_steps: int = 0  # because the gradient was not finite
    skipped_in_a_row: int = 0  # of them, those since the last step that was not skipped
    reward_faults: dict[str, int] = field(default_factory=dict)  # counted as 0, by reward
    tokens_seen: int = 0  # sequence tokens that updates have read, over all processes

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Count from where the run was that wrote ``state``; what it lacks stays."""
        for name in (f.name for f in fields(self)):
            value = state.get(name, getattr(self, name))
            setattr(self, name, dict(value) if isinstance(value, Mapping) else int(value))

    def count_reward_faults(self, faults: Mapping[str, float]) -> None:
        """Add those of an iteration, by reward."""
        for name, number in faults.items():
            if number:
                self.reward_faults[name] = self.reward_faults.get(name, 0) + round(number)

    def scalars(self) -> dict[str, float]:
        """For the log, by name."""
        return {
            "optim/updates": self.updates,
            "optim/skipped_steps": self.skipped_steps,
            "run/tokens_seen": self.tokens_seen,
        }
