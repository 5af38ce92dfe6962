"""Mean scores as torchmetrics classes: sums and counts, added up over the processes.

``compute()`` is the mean over all rows of all processes, each row counted once, whatever number of
rows or of batches a process had (also none). Values are ratios in [0, 1]; tables show them times
100.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from refine_pl.errors import ConfigError, DataError
from refine_pl.evaluation.tasks import RULES, Rule, rule_of, rules_of, score
from refine_pl.randomness import stream_seed
from refine_pl.task_records import Answer


class _Means(Metric):
    """Means of several kinds of rows.

    Args:
        size: how many kinds.
        names: what tells this metric from others. A ``MetricCollection`` takes metrics whose states
            agree after the first batch for the same one, and updates only one of them from then on:
            two rules often agree on a first batch.
        **kwargs: of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound, plot_upper_bound = 0.0, 1.0
    total: Tensor
    num_rows: Tensor

    def __init__(self, size: tuple[int, ...], names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zeros = torch.zeros(size, dtype=torch.float64)  # a million rows add up without rounding
        self.add_state("total", default=zeros, dist_reduce_fx="sum")
        self.add_state("num_rows", default=zeros.long(), dist_reduce_fx="sum")
        self.add_state("rule_id", default=torch.tensor(stream_seed(*names)), dist_reduce_fx="max")

    def add(self, values: Sequence[float]) -> None:
        """Add the scores of rows."""
        self.total += sum(values)
        self.num_rows += len(values)

    def compute(self) -> Any:
        """``[]`` float64 in [0, 1]; nan if there was no row on any process."""
        return self.total / self.num_rows


class MeanScore(_Means):
    """Mean of a rule over rows.

    Args:
        rule: what scores a row.
        **kwargs: of ``torchmetrics.Metric``.
    """

    def __init__(self, rule: Rule, **kwargs: Any) -> None:
        super().__init__((), (rule.name, rule.cut), **kwargs)
        self.rule = rule

    def update(self, responses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add rows: a response and a list of references each; the same number of both."""
        _check_lengths(responses, references)
        # All rows are scored before the first one counts: an error leaves nothing half added.
        self.add([self.rule(*row) for row in zip(responses, references, strict=True)])


class TaskScore(MeanScore):
    """Mean of the released rule of one task.

    Args:
        task: a task that :func:`refine_pl.evaluation.score` knows.
        **kwargs: of ``torchmetrics.Metric``.
    """

    def __init__(self, task: str, **kwargs: Any) -> None:
        super().__init__(rule_of(task), **kwargs)
        self.task = task


class _Named(MeanScore):
    """Mean of the rule that the class names."""

    name: str

    def __init_subclass__(cls, rule: str) -> None:
        cls.name = rule

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(RULES[self.name], **kwargs)


class NeedleRecall(_Named, rule="needle_recall"):
    """RULER needle-in-a-haystack: fraction of the needles' values in the output."""


class RulerQA(_Named, rule="ruler_qa"):
    """RULER question answering, released rule: a reference is in the first line of the output."""


class RulerQAOfficial(_Named, rule="ruler_qa_official"):
    """RULER question answering, official rule: a reference is anywhere in the output."""


class QAF1(_Named, rule="qa_f1"):
    """LongBench question answering: word F1 of the first line. For triviaqa: ``TaskScore``."""


class RougeL(_Named, rule="rouge_l"):
    """LongBench summaries: ROUGE-L F of the whole output. For samsum: ``TaskScore``."""


class Classification(_Named, rule="classification"):
    """LongBench trec: the class that is named, shared between all that are named."""


class CodeSimilarity(_Named, rule="code_similarity"):
    """LongBench lcc and repobench-p: similarity of the first line of code."""


class AnswerScore(_Means):
    """Mean over answers of any tasks, each scored by the released rule of its task.

    Args:
        **kwargs: of ``torchmetrics.Metric``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__((), ("answers",), **kwargs)

    def update(self, answers: Iterable[Answer]) -> None:
        """Add answers; their rows have references."""
        self.add([score(answer.row.task, answer.text, answer.row.answers) for answer in answers])


class TaskScores(_Means):
    """Means of all rules of several tasks at once, for rows of mixed tasks.

    Args:
        tasks: every task that may occur on any process: the same list, in the same order, on all.
        **kwargs: of ``torchmetrics.Metric``.
    """

    def __init__(self, tasks: Sequence[str], **kwargs: Any) -> None:
        rules = [(task, rule) for task in dict.fromkeys(tasks) for rule in rules_of(task)]
        super().__init__((len(rules),), tasks, **kwargs)
        self.rules = rules

    def update(
        self, tasks: Sequence[str], responses: Sequence[str], references: Sequence[Sequence[str]]
    ) -> None:
        """Add rows: a task, a response and a list of references each."""
        _check_lengths(tasks, responses, references)
        known = dict.fromkeys(task for task, _ in self.rules)
        total, num_rows = torch.zeros_like(self.total), torch.zeros_like(self.num_rows)
        for task, response, right in zip(tasks, responses, references, strict=True):
            if task not in known:
                raise ConfigError(
                    f"a row of the task {task!r} met a metric without it",
                    allowed=", ".join(known),
                    way_out="give TaskScores every task, on every process",
                )
            for i, (name, rule) in enumerate(self.rules):
                if name == task:
                    total[i] += rule(response, right)
                    num_rows[i] += 1
        self.total += total
        self.num_rows += num_rows

    def compute(self) -> dict[str, Tensor]:
        """``{"task/rule": []}`` float64 in [0, 1]; nan for a task without a row."""
        means = super().compute()
        return {f"{task}/{rule.name}": means[i] for i, (task, rule) in enumerate(self.rules)}


def _check_lengths(*columns: Sequence[Any]) -> None:
    if any(isinstance(column, str) for column in columns):
        raise DataError("a metric takes lists of texts, not one text")
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise DataError(f"rows differ in number: {', '.join(map(str, lengths))}")
