"""Mean scores as torchmetrics classes: sums and counts, added up over the ranks.

``compute()`` is the mean over all rows of all ranks, each row counted once, whatever number of rows
or of batches a rank had (also none). Values are ratios in [0, 1]; tables show them times 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from refine_pl.errors import ConfigError, DataError
from refine_pl.evaluation.tasks import RULES, Rule, rule_of
from refine_pl.randomness import stream_seed


class MeanScore(Metric):
    """Mean of a rule over rows.

    Args:
        rule: what scores a row.
        **kwargs: of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    total: Tensor
    num_rows: Tensor

    def __init__(self, rule: Rule, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rule = rule
        zero = torch.zeros((), dtype=torch.float64)  # a million rows add up without rounding
        self.add_state("total", default=zero, dist_reduce_fx="sum")
        self.add_state("num_rows", default=torch.tensor(0), dist_reduce_fx="sum")
        _tell_apart(self, rule.name, rule.cut)

    def update(self, responses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add rows: a response and a list of references each; the same number of both."""
        _check_lengths(responses, references)
        # All rows are scored before the first one counts: an error leaves nothing half added.
        values = [self.rule(*row) for row in zip(responses, references, strict=True)]
        self.total += sum(values)
        self.num_rows += len(values)

    def compute(self) -> Tensor:
        """``[]`` float64 in [0, 1]; nan if there was no row on any rank."""
        return self.total / self.num_rows


class TaskScore(MeanScore):
    """Mean of the released rule of one task.

    Args:
        task: a task that :func:`refine_pl.evaluation.score` knows.
        **kwargs: of ``torchmetrics.Metric``.
    """

    def __init__(self, task: str, **kwargs: Any) -> None:
        super().__init__(rule_of(task), **kwargs)
        self.task = task


class NeedleRecall(MeanScore):
    """RULER needle-in-a-haystack: fraction of the needles' values in the output."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(RULES["needle_recall"], **kwargs)


class RulerQA(MeanScore):
    """RULER question answering, released rule: a reference is in the first line of the output."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(RULES["ruler_qa"], **kwargs)


class RulerQAOfficial(MeanScore):
    """RULER question answering, official rule: a reference is anywhere in the output."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(RULES["ruler_qa_official"], **kwargs)


class QAF1(MeanScore):
    """LongBench question answering: word F1 of the first line. For triviaqa: ``TaskScore``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(RULES["qa_f1"], **kwargs)


class RougeL(MeanScore):
    """LongBench summaries: ROUGE-L F of the whole output. For samsum: ``TaskScore``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(RULES["rouge_l"], **kwargs)


class Classification(MeanScore):
    """LongBench trec: the class that is named, shared between all that are named."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(RULES["classification"], **kwargs)


class CodeSimilarity(MeanScore):
    """LongBench lcc and repobench-p: similarity of the first line of code."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(RULES["code_similarity"], **kwargs)


class TaskScores(Metric):
    """Means of all rules of several tasks at once, for rows of mixed tasks.

    Args:
        tasks: every task that may occur on any rank: the same list, in the same order, on all.
        **kwargs: of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    num_rows: Tensor

    def __init__(self, tasks: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tasks = tuple(tasks)
        self.rules: list[tuple[str, Rule]] = []
        for task in dict.fromkeys(self.tasks):
            rule = rule_of(task)
            self.rules += [(task, rule), *((task, RULES[name]) for name in rule.further)]
        zeros = torch.zeros(len(self.rules), dtype=torch.float64)
        self.add_state("total", default=zeros, dist_reduce_fx="sum")
        self.add_state("num_rows", default=zeros.long(), dist_reduce_fx="sum")
        _tell_apart(self, *self.tasks)

    def update(
        self,
        tasks: Sequence[str],
        responses: Sequence[str],
        references: Sequence[Sequence[str]],
    ) -> None:
        """Add rows: a task, a response and a list of references each."""
        _check_lengths(tasks, responses, references)
        total, num_rows = torch.zeros_like(self.total), torch.zeros_like(self.num_rows)
        for task, response, right in zip(tasks, responses, references, strict=True):
            if task not in self.tasks:
                raise ConfigError(
                    f"a row of the task {task!r} met a metric without it",
                    allowed=", ".join(self.tasks),
                    way_out="give TaskScores every task, on every rank",
                )
            for i, (name, rule) in enumerate(self.rules):
                if name == task:
                    total[i] += rule(response, right)
                    num_rows[i] += 1
        self.total += total
        self.num_rows += num_rows

    def compute(self) -> dict[str, Tensor]:
        """``{"task/rule": []}`` float64 in [0, 1]; nan for a task without a row."""
        means = self.total / self.num_rows
        return {f"{task}/{rule.name}": means[i] for i, (task, rule) in enumerate(self.rules)}


def _tell_apart(metric: Metric, *names: str) -> None:
    """Give the metric a state of its own value.

    A ``MetricCollection`` takes metrics whose states agree after the first batch for the same one,
    and updates only one of them from then on: two rules often agree on a first batch.
    """
    metric.add_state("rule_id", default=torch.tensor(stream_seed(*names)), dist_reduce_fx="max")


def _check_lengths(*columns: Sequence[Any]) -> None:
    if any(isinstance(column, str) for column in columns):
        raise DataError("a metric takes lists of texts, not one text")
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise DataError(f"rows differ in number: {', '.join(map(str, lengths))}")
