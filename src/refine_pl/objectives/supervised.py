"""Cross-entropy of the true answers."""

from __future__ import annotations

import torch
from torch import Tensor

from refine_pl.backbones.base import FastWeightLM
from refine_pl.errors import DataError
from refine_pl.losses import LossSum, ntp_targets
from refine_pl.objectives.base import AnswerObjective
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch
from refine_pl.task_records import TaskBatch
from refine_pl.tokenizers import Tokenizer


class SupervisedAnswers(AnswerObjective):
    """Mean cross-entropy over the tokens of the first answers, with the prompts in context."""

    def prepare(
        self,
        policy: FastWeightLM,
        batch: TaskBatch,
        tokenizer: Tokenizer | None,
        generator: RowRandom,
    ) -> TaskBatch:
        """Nothing to do but to check that there are answers.

        Raises:
            DataError: there are none.
        """
        if batch.answered is None:
            without = [row.id for row in batch.task_rows if not row.answers]
            raise DataError(
                "there are rows without answers to train on",
                where=f"row {without[0]}" if without else "another batch of the training rows",
                allowed="rows with at least one answer each",
            )
        return batch

    def count(self, prepared: TaskBatch) -> Tensor:
        """Answer tokens."""
        return (answer_targets(prepared) >= 0).sum()

    def loss(self, policy: FastWeightLM, prepared: TaskBatch) -> LossSum:
        """The summed cross-entropy; for the log also the share of tokens that are most likely."""
        logprob, correct = answer_statistics(policy, prepared)
        total = -logprob.sum()
        count = torch.tensor(logprob.numel(), device=logprob.device)
        return LossSum(
            total,
            {
                "train/sft_loss": (total.detach(), count),
                "train/answer_accuracy": (correct.sum(), count),
            },
        )

    def reads(self, batch: TaskBatch) -> Batch:
        """Prompts with their answers."""
        return batch.answered or batch.prompts

    def describe(self) -> str:
        """What the step is on."""
        return "1 update on the answers"


def answer_targets(batch: TaskBatch) -> Tensor:
    """Next-token targets that belong to an answer, -1 elsewhere: ``[B, A]`` int64."""
    assert batch.answered is not None
    assert batch.answer_start is not None
    targets = ntp_targets(batch.answered)
    following = torch.arange(1, targets.shape[1] + 1, device=targets.device)
    return targets.masked_fill(following < batch.answer_start[:, None], -1)


def answer_statistics(policy: FastWeightLM, batch: TaskBatch) -> tuple[Tensor, Tensor]:
    """Of each answer token, given all before it: log-probability and whether it is most likely.

    Returns:
        ``[M]`` float32 with gradients, nats, and ``[M]`` bool, for the ``M`` answer tokens.
    """
    assert batch.answered is not None
    targets = answer_targets(batch).flatten()
    hidden = policy(batch.answered.tokens, batch.answered.num_tokens).hidden
    rows = (targets >= 0).nonzero().squeeze(-1)  # the head reads the answers only
    stats = policy.head(hidden.flatten(0, 1)[rows], targets[rows], correct=True)
    return stats.logprob, stats.correct
