"""How good answers are: rules of the benchmarks, metrics around them, intervals and comparisons.

Most names are loaded when they are first used, so that scoring imports neither torch nor
torchmetrics nor rouge before it needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refine_pl.evaluation.tasks import (
    RULES,
    TASK_RULES,
    Rule,
    register,
    register_rules,
    score,
    scores,
)
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
        AnswerScore,
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

__all__ = [
    "QAF1",
    "RULES",
    "TASK_RULES",
    "AnswerScore",
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

_BOOTSTRAP = ("Interval", "PairedDifference", "mean_interval", "paired_difference")
_HOMES = {
    **dict.fromkeys(set(__all__) - set(globals()), "metrics"),
    **dict.fromkeys(_BOOTSTRAP, "bootstrap"),
    "Answering": "answering",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
