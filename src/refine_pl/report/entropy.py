"""The entropy along one document, and where rollouts started: one line of ``entropy.jsonl``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

DIGITS = 4  # behind the point, of every entropy in the file


@dataclass(frozen=True, slots=True)
class EntropyMap:
    """Letters: ``T`` tokens of the document, ``P`` positions of it."""

    iteration: int  # from 1
    document: str  # its name
    entropy: list[float]  # T, nats; entropy[t] is that of the token after t
    smoothed: list[float]  # T, nats, as the selector scores them
    positions: list[int]  # P, index of the first rollout token
    scored: list[int]  # P, the token whose smoothed entropy stands for the position
    borders: list[int]  # first tokens of all segments but the first; empty without segments

    def as_line(self) -> dict[str, Any]:
        """The fields, with rounded entropies."""
        return asdict(self) | {
            "entropy": _rounded(self.entropy),
            "smoothed": _rounded(self.smoothed),
        }


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, DIGITS) for value in values]
