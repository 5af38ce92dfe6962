"""How good answers are: rules of the benchmarks, metrics around them, intervals and comparisons.

The names below are loaded when they are first used, so that nothing here imports Lightning,
torchmetrics or rouge before it is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refine_pl.lazy import lazy_names

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

_HOMES = {
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

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
