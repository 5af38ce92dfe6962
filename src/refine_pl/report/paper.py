"""The numbers of the paper (arXiv 2602.16704), percent, to be read beside one's own.

They were measured with the released 760M and 1.3B checkpoints on a fixed set of rows, by the rules
that this project calls released ones. They are kept in ``paper.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SOURCE = "arXiv 2602.16704"
ABLATION_MODELS = ("LaCT-760M", "DeltaNet-1.3B")
BEST_ROLLOUT_LENGTH = "The paper found 5 the best rollout length of 1, 3, 5 and 7."

Place = tuple[str, int | None]  # task and length in tokens; None: no such sets


@dataclass(frozen=True, slots=True)
class PaperTable:
    """A table of the paper."""

    name: str
    about: str  # rows and metric
    places: tuple[Place, ...]  # its columns
    scores: dict[str, dict[str, dict[Place, float]]]  # by model, then by the stage of training


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split()))


def _table(
    name: str, about: str, tasks: list[str], lengths: list[int | None], scores: Any
) -> PaperTable:
    places = tuple((task, length) for task in tasks for length in lengths)
    found = {
        model: {
            stage: dict(zip(places, _numbers(values), strict=True))
            for stage, values in stages.items()
        }
        for model, stages in scores.items()
    }
    return PaperTable(name, about, places, found)


_content = yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8"))
TABLES = NIAH, QA, LONG_BENCH = tuple(_table(**table) for table in _content["tables"])
AVERAGE, *LONGBENCH = (task for task, _ in LONG_BENCH.places)  # the average stands for a task
ABLATIONS: dict[str, dict[str, tuple[float, ...]]] = {
    group: {setting: _numbers(values) for setting, values in settings.items()}
    for group, settings in _content["ablations"].items()
}
"""LongBench average after mid-training by group of overlays and setting, for both models."""
