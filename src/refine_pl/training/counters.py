"""What a run has done so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields


@dataclass(slots=True)
class Counters:
    """Counts since the start of a run, resumed ones included."""

    iteration: int = 0  # batches that are finished
    updates: int = 0  # optimizer steps, skipped ones included
    skipped_steps: int = 0  # because the gradient was not finite
    tokens_seen: int = 0  # sequence tokens that updates have read, over all processes

    def state_dict(self) -> dict[str, int]:
        """Plain values, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Count from where the run was that wrote ``state``; what it lacks stays."""
        for field in fields(self):
            setattr(self, field.name, int(state.get(field.name, getattr(self, field.name))))

    def scalars(self) -> dict[str, float]:
        """For the log, by name."""
        return {
            "optim/updates": self.updates,
            "optim/skipped_steps": self.skipped_steps,
            "run/tokens_seen": self.tokens_seen,
        }
