"""From a batch to optimizer steps.

A batch is cut into mini-batches, one optimizer step each, and these into micro-batches, one
backward pass each. Batches and mini-batches are counted over all processes that share them,
micro-batches on each process. What one update computes is in ``refine_step.py``; which updates an
iteration makes, in ``module.py`` and the phases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.optim import Optimizer

from refine_pl.backbones import FastWeightLM
from refine_pl.objectives import AnswerObjective
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch, Experience, RolloutPlan
from refine_pl.refine_step import Counts, LossWeights
from refine_pl.stopwatch import Stopwatch
from refine_pl.task_records import TaskBatch
from refine_pl.training.sharding import whole
from refine_pl.training.tally import Tally, tally_experience

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.core.optimizer import LightningOptimizer

    from refine_pl.training.module import RefineModule

T = TypeVar("T")


class Rows(Protocol):
    """Something that can be cut into smaller batches."""

    def __len__(self) -> int: ...

    def narrow(self, start: int, stop: int) -> Self:
        """Rows ``start`` to ``stop - 1``."""


AnyRows = TypeVar("AnyRows", bound=Rows)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a schedule may change from iteration to iteration."""

    plan: RolloutPlan
    weights: LossWeights
    lr: float | None = None  # None: the optimizer's own


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes that share a batch.

    Args:
        count: how many they are.
        total: adds a tensor up over them.
        synchronised: makes a backward pass exchange gradients, if it is told that it is the last
            one of an update.
    """

    count: int
    total: Callable[[Tensor], Tensor]
    synchronised: Callable[[bool], AbstractContextManager[Any]]

    @classmethod
    def of(cls, trainer: Trainer) -> Processes:
        """All processes of a run."""
        strategy = trainer.strategy

        def synchronised(last: bool) -> AbstractContextManager[Any]:
            if last or not isinstance(strategy, ParallelStrategy):
                return nullcontext()
            return strategy.block_backward_sync()

        def total(values: Tensor) -> Tensor:
            return torch.as_tensor(strategy.reduce(values, reduce_op="sum"))

        return cls(trainer.world_size, total, synchronised)

    @classmethod
    def alone(cls) -> Processes:
        """One process with a batch of its own."""
        return cls(1, lambda values: values, lambda last: nullcontext())


class UpdateLoop:
    """Updates of a module's policy.

    Args:
        module: its policy, parts, sizes and seed are used; its counters are left alone.
        optimizer: steps on gradients that this loop clips.
        processes: that share the batches.
        tally: where sums for the log are added.
        stopwatch: of the parts of an update.
        observe: is shown every experience, before the update.
        reference: that the KL term compares with; the module's own if left out.

    Attributes:
        updates: optimizer steps so far, skipped ones included.
        skipped: steps that were skipped, because the gradient was not finite.
        tokens: sequence tokens that updates of this process have read.
    """

    def __init__(
        self,
        module: RefineModule,
        optimizer: Optimizer | LightningOptimizer,
        processes: Processes,
        tally: Tally,
        stopwatch: Stopwatch,
        observe: Callable[[Experience], None] | None = None,
        reference: FastWeightLM | None = None,
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.processes = processes
        self.tally = tally
        self.stopwatch = stopwatch
        self.observe = observe
        self.reference = module.reference if reference is None else reference
        self.updates = self.skipped = self.tokens = 0

    def refine(self, batch: Batch, settings: Settings, update: int, purpose: str = "train") -> None:
        """ReFINE on a batch of this process: rollouts, then a step for each mini-batch.

        Args:
            batch: sequences.
            settings: weights and sizes; without a policy or KL term nothing is drawn.
            update: with the rows and the purpose, the name of the random streams.
            purpose: of the draw.
        """
        minibatches = list(cut(batch, self._minibatch_size(len(batch))))
        self.tokens += int(batch.num_tokens.sum())

        def draw(minibatch: Batch) -> Sequence[Experience | Batch]:
            return self._draw(minibatch, settings, update, purpose)

        if self.module.rollouts_per == "batch":
            for micro_batches in [draw(minibatch) for minibatch in minibatches]:
                self._refine_step(micro_batches, settings)
        else:
            for minibatch in minibatches:
                self._refine_step(draw(minibatch), settings)

    def answers(self, batch: TaskBatch, objective: AnswerObjective, update: int) -> None:
        """One optimizer step on the answers of a batch of this process."""
        module = self.module
        self.tokens += int(objective.reads(batch).num_tokens.sum())
        prepared = []
        with whole(module.policy):
            for micro_batch in self.micro_batches(batch):
                generator = RowRandom(module.seed, update, micro_batch.prompts.rows, "answer")
                with self.stopwatch("answer"), self._precision():
                    prepared.append(
                        objective.prepare(module.policy, micro_batch, module.tokenizer, generator)
                    )
        (count,) = self.total([(objective.count(micro_batch),) for micro_batch in prepared])

        def loss_of(micro_batch: Any) -> Tensor:
            made = objective.loss(module.policy, micro_batch)
            for name, (total, number) in made.sums.items():
                self.tally.add(name, total, number)
            return made.total / count

        self.step(prepared, loss_of)

    def step(self, micro_batches: Sequence[T], loss_of: Callable[[T], Tensor]) -> None:
        """One optimizer step on the sum of the losses of ``micro_batches``.

        A gradient that is not finite is dropped, on every process alike.
        """
        with self.stopwatch("update"):
            for i, micro_batch in enumerate(micro_batches):
                with self.processes.synchronised(i == len(micro_batches) - 1):
                    with self._precision():
                        loss = loss_of(micro_batch)
                    # The types of the backward pass were settled in the forward pass, but
                    # Lightning's autocast may reach around the whole step.
                    with torch.autocast(self.module.device.type, enabled=False):
                        self.module.manual_backward(loss)
            self._descend()

    def total(self, counts: Sequence[tuple[Tensor, ...]]) -> list[float]:
        """Counts summed over micro-batches and processes, for gradients that are averaged.

        Gradients are averaged over processes, so each total is divided by their number.
        """
        local = torch.stack([torch.stack(count) for count in counts]).sum(0)
        total = self.processes.total(local.double())
        values: list[float] = (total.clamp(min=1) / self.processes.count).tolist()
        return values

    def micro_batches(self, batch: AnyRows) -> list[AnyRows]:
        """The rows of one backward pass each."""
        return list(cut(batch, self.module.microbatch_size))

    def _minibatch_size(self, batch_size: int) -> int:
        """Rows of an optimizer step, on this process."""
        if self.module.steps == "per_batch":
            return batch_size
        return self.module.minibatch_size // self.processes.count

    def _draw(
        self, minibatch: Batch, settings: Settings, update: int, purpose: str
    ) -> Sequence[Experience | Batch]:
        """Rollouts for each micro-batch, or the bare micro-batches if no term needs them."""
        micro_batches = self.micro_batches(minibatch)
        if not settings.weights.needs_rollouts:
            return micro_batches
        module, drawn = self.module, []
        with whole(module.policy):
            for micro_batch in micro_batches:
                with self._precision():
                    experience = module.refine_step.draw(
                        module.policy,
                        micro_batch,
                        settings.plan,
                        RowRandom(module.seed, update, micro_batch.rows, purpose),
                        self.stopwatch,
                    )
                tally_experience(self.tally, experience, module.refine_step.advantage.group_by)
                if self.observe is not None:
                    self.observe(experience)
                drawn.append(_without_hidden(experience))
        return drawn

    def _refine_step(self, micro_batches: Sequence[Experience | Batch], settings: Settings) -> None:
        step = self.module.refine_step
        counts = Counts(*self.total([step.counts(m) for m in micro_batches]))

        def loss_of(micro_batch: Experience | Batch) -> Tensor:
            module = self.module
            made = step.loss(module.policy, micro_batch, counts, settings.weights, self.reference)
            for name, (total, number) in made.sums.items():
                self.tally.add(name, total, number)
            return made.total

        self.step(micro_batches, loss_of)

    def _descend(self) -> None:
        optimizer = self.optimizer
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.module.gradient_clip)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if bool(norm.isfinite()):
            self.tally.add("optim/grad_norm", norm, 1)
        else:
            self.skipped += 1
            # Without gradients the step changes nothing. It is taken so that the trainer's count of
            # steps stays a multiple of the updates per batch, which checkpoints rely on.
            optimizer.zero_grad()
        optimizer.step()
        optimizer.zero_grad()
        self.updates += 1

    def _precision(self) -> AbstractContextManager[Any]:
        """The trainer's autocast: hooks of callbacks run outside of it."""
        return self.module.trainer.precision_plugin.forward_context()


def cut(batch: AnyRows, size: int) -> Iterator[AnyRows]:
    """Pieces of ``size`` rows; the last one may be smaller."""
    for start in range(0, len(batch), size):
        yield batch.narrow(start, min(start + size, len(batch)))


def _without_hidden(experience: Experience) -> Experience:
    """The update does not need the rewards' inputs, and all of a batch's would wait for it."""
    none = experience.rewards.new_empty(0)
    rollouts = replace(experience.rollouts, hidden=none, target_hidden=none)
    return replace(experience, rollouts=rollouts)
