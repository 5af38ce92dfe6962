"""What one optimizer step on answers minimises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from refine_pl.backbones.base import FastWeightLM
from refine_pl.losses import LossSum
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch
from refine_pl.task_records import TaskBatch
from refine_pl.tokenizers import Tokenizer


class AnswerObjective(ABC):
    """The outer step of post-training.

    A batch of rows is cut into micro-batches. All of them are prepared under the policy as it is,
    then one optimizer step is made on the sum of their losses over the sum of their counts.
    """

    @abstractmethod
    def prepare(
        self,
        policy: FastWeightLM,
        batch: TaskBatch,
        tokenizer: Tokenizer | None,
        generator: RowRandom,
    ) -> Any:
        """What the loss of a micro-batch needs, made without gradients: sampled answers, say."""

    @abstractmethod
    def count(self, prepared: Any) -> Tensor:
        """What the summed loss is divided by, usually tokens: a scalar."""

    @abstractmethod
    def loss(self, policy: FastWeightLM, prepared: Any) -> LossSum:
        """The loss summed over the micro-batch, a scalar with gradients, and sums for the log."""

    def reads(self, batch: TaskBatch) -> Batch:
        """The sequences that the update reads, whose tokens count as seen."""
        return batch.prompts

    @abstractmethod
    def describe(self) -> str:
        """A few words for people."""
