"""How good answers are: rules of the benchmarks, metrics around them, intervals and comparisons.

The names below are loaded when they are first used, so that nothing here imports Lightning,
torchmetrics or rouge before it is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refine_pl.evaluation.answering import Answering
    from refine_pl.evaluation.bootstrap import (
        Interval,
        PairedDifference,
        mean_interval,
        paired_difference,
    )
    from refine_pl.evaluation.metrics import (
        QAF1,
        Classification,
        CodeSimilarity,
        MeanScore,
        NeedleRecall,
        RougeL,
        RulerQA,
        RulerQAOfficial,
        TaskScore,
        TaskScores,
    )
    from refine_pl.evaluation.tasks import (
        RULES,
        TASK_RULES,
        Rule,
        register,
        register_rules,
        score,
        scores,
    )

__all__ = [
    "QAF1",
    "RULES",
    "TASK_RULES",
    "Answering",
    "Classification",
    "CodeSimilarity",
    "Interval",
    "MeanScore",
    "NeedleRecall",
    "PairedDifference",
    "RougeL",
    "Rule",
    "RulerQA",
    "RulerQAOfficial",
    "TaskScore",
    "TaskScores",
    "mean_interval",
    "paired_difference",
    "register",
    "register_rules",
    "score",
    "scores",
]

_HOME = {
    "Answering": "answering",
    "Classification": "metrics",
    "CodeSimilarity": "metrics",
    "Interval": "bootstrap",
    "mean_interval": "bootstrap",
    "MeanScore": "metrics",
    "NeedleRecall": "metrics",
    "paired_difference": "bootstrap",
    "PairedDifference": "bootstrap",
    "QAF1": "metrics",
    "register": "tasks",
    "register_rules": "tasks",
    "RougeL": "metrics",
    "Rule": "tasks",
    "RulerQA": "metrics",
    "RulerQAOfficial": "metrics",
    "RULES": "tasks",
    "score": "tasks",
    "scores": "tasks",
    "TASK_RULES": "tasks",
    "TaskScore": "metrics",
    "TaskScores": "metrics",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
