"""From a batch to optimizer steps: the engine of every phase, and of the benchmark.

A batch is cut into mini-batches, one optimizer step each, and these into micro-batches, one
backward pass each. What one update computes is in ``refine_step.py``; which updates a batch is made
into, a phase says (``phases.py``). Nothing here knows of Lightning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor

from refine_pl.backbones.base import FastWeightLM
from refine_pl.losses.base import LossSum
from refine_pl.objectives.base import AnswerObjective
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch, Experience
from refine_pl.refine_step import Counts, RefineStep
from refine_pl.stopwatch import Stopwatch
from refine_pl.task_records import TaskBatch
from refine_pl.training.counters import Counters
from refine_pl.training.settings import Settings
from refine_pl.training.sharding import whole
from refine_pl.training.tally import Tally, tally_experience

T = TypeVar("T")


class Rows(Protocol):
    """Something that can be cut into smaller batches."""

    def __len__(self) -> int: ...

    def narrow(self, start: int, stop: int) -> Self:
        """Rows ``start`` to ``stop - 1``."""


AnyRows = TypeVar("AnyRows", bound=Rows)


class Stepper(Protocol):
    """What is needed of an optimizer; Lightning's wrapper of one has it too."""

    param_groups: list[dict[str, Any]]

    def step(self) -> Any:
        """Change the parameters."""

    def zero_grad(self) -> None:
        """Drop the gradients."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How a batch is cut."""

    minibatch: int | None  # rows of an optimizer step, over all processes; None: the whole batch
    microbatch: int  # rows of a forward and backward pass, on each process
    rollouts_per: Literal["batch", "minibatch"] = "batch"  # what is drawn before the first step

    def updates(self, batch_size: int) -> int:
        """Optimizer steps that ReFINE takes for ``batch_size`` rows, over all processes."""
        return 1 if self.minibatch is None else batch_size // self.minibatch


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes that share a batch; one alone by default."""

    count: int = 1
    total: Callable[[Tensor], Tensor] = lambda values: values  # adds a tensor up over them
    # Makes a backward pass exchange gradients, if it is told that it is the last one of an update.
    synchronised: Callable[[bool], AbstractContextManager[Any]] = lambda last: nullcontext()


class Updater:
    """Makes updates of a policy.

    Args:
        policy: the model being optimised.
        step: the parts of the algorithm.
        optimizer: over the policy's parameters; this class clips the gradients that it steps on.
        sizes: how batches are cut.
        seed: names the random streams, with the iteration and the rows.
        gradient_clip: largest gradient norm of an update.
        reference: the frozen model that a KL term compares with.
        backward: runs a backward pass.
        autocast: the context of every forward pass.
        processes: that share the batches.
        observe: is shown every experience before the update.

    Attributes:
        counters: what has been done; whoever calls counts the iterations.
        tally: sums for the log; whoever reads them puts an empty one in its place.
        stopwatch: of the parts of an update; likewise.
    """

    def __init__(
        self,
        policy: FastWeightLM,
        step: RefineStep,
        optimizer: Stepper,
        sizes: Sizes,
        *,
        seed: int = 0,
        gradient_clip: float = 1.0,
        reference: FastWeightLM | None = None,
        backward: Callable[[Tensor], None] = torch.Tensor.backward,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        processes: Processes | None = None,
        observe: Callable[[Experience], None] | None = None,
    ) -> None:
        self.policy = policy
        self.step = step
        self.optimizer = optimizer
        self.sizes = sizes
        self.seed = seed
        self.gradient_clip = gradient_clip
        self.reference = reference
        self.backward = backward
        self.autocast = autocast
        self.processes = processes or Processes()
        self.observe = observe
        self.counters = Counters()
        self.tally = Tally()
        self.stopwatch = Stopwatch(self.device)

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return next(self.policy.parameters()).device

    def refine(self, batch: Batch, settings: Settings, purpose: str = "train") -> None:
        """ReFINE on a batch of this process: rollouts, then a step for each mini-batch.

        Args:
            batch: sequences.
            settings: weights and sizes; without a policy or KL term nothing is drawn.
            purpose: with the iteration and the rows, the name of the random streams.
        """
        rows = self.sizes.minibatch
        minibatches = list(cut(batch, len(batch) if rows is None else rows // self.processes.count))
        self._count_tokens(batch)
        if self.sizes.rollouts_per == "batch":
            for drawn in [self.draw(minibatch, settings, purpose) for minibatch in minibatches]:
                self.update(drawn, settings)
        else:
            for minibatch in minibatches:
                self.update(self.draw(minibatch, settings, purpose), settings)

    def answer(self, batch: TaskBatch, objective: AnswerObjective, tokenizer: Any) -> None:
        """One optimizer step on the answers of a batch of this process."""
        self._count_tokens(objective.reads(batch))
        prepared = []
        with whole(self.policy):
            for rows in cut(batch, self.sizes.microbatch):
                random = self._random(rows.prompts, "answer")
                with self.stopwatch("answer"), self.autocast():
                    prepared.append(objective.prepare(self.policy, rows, tokenizer, random))
        (count,) = self._total([(objective.count(rows),) for rows in prepared])

        def loss_of(rows: Any) -> LossSum:
            loss = objective.loss(self.policy, rows)
            return LossSum(loss.total / count, loss.sums)

        with self.stopwatch("update"):
            self._accumulate(prepared, loss_of)
            self._descend()

    def draw(
        self, minibatch: Batch, settings: Settings, purpose: str = "train"
    ) -> list[Experience | Batch]:
        """Rollouts for each micro-batch, or the bare micro-batches if no term needs them."""
        micro_batches = list(cut(minibatch, self.sizes.microbatch))
        if not settings.weights.needs_rollouts:
            return list(micro_batches)
        drawn: list[Experience | Batch] = []
        with whole(self.policy):
            for rows in micro_batches:
                random = self._random(rows, purpose)
                with self.autocast():
                    experience = self.step.draw(
                        self.policy, rows, settings.plan, random, self.stopwatch
                    )
                tally_experience(self.tally, experience, self.step.advantage.group_by)
                if self.observe is not None:
                    self.observe(experience)
                drawn.append(_without_hidden(experience))
        return drawn

    def update(self, micro_batches: Sequence[Experience | Batch], settings: Settings) -> None:
        """One optimizer step on what :meth:`draw` returned."""
        with self.stopwatch("update"):
            self.accumulate(micro_batches, settings)
            self._descend()

    def accumulate(self, micro_batches: Sequence[Experience | Batch], settings: Settings) -> Tensor:
        """The gradients of one update, without a step.

        Returns:
            The loss of this process's share, detached.
        """
        counts = Counts(*self._total([self.step.counts(m) for m in micro_batches]))

        def loss_of(micro_batch: Experience | Batch) -> LossSum:
            return self.step.loss(
                self.policy, micro_batch, counts, settings.weights, self.reference
            )

        return self._accumulate(micro_batches, loss_of)

    def _accumulate(self, micro_batches: Sequence[T], loss_of: Callable[[T], LossSum]) -> Tensor:
        total = torch.zeros((), device=self.device)
        for i, micro_batch in enumerate(micro_batches):
            with self.processes.synchronised(i == len(micro_batches) - 1):
                with self.autocast():
                    loss = loss_of(micro_batch)
                # The types of the backward pass were settled in the forward pass, but an autocast
                # of the caller's may reach around the whole step.
                with torch.autocast(self.device.type, enabled=False):
                    self.backward(loss.total)
            for name, (value, count) in loss.sums.items():
                self.tally.add(name, value, count)
            total = total + loss.total.detach()
        return total

    def _descend(self) -> None:
        """Clip and step. A gradient that is not finite is dropped, on every process alike."""
        optimizer = self.optimizer
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.gradient_clip)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if bool(norm.isfinite()):
            self.tally.add("optim/grad_norm", norm, 1)
        else:
            self.counters.skipped_steps += 1
            # Without gradients the step changes nothing. It is taken so that a trainer's count of
            # steps stays a multiple of the updates per batch, which checkpoints rely on.
            optimizer.zero_grad()
        optimizer.step()
        optimizer.zero_grad()
        self.counters.updates += 1

    def _random(self, batch: Batch, purpose: str) -> RowRandom:
        return RowRandom(self.seed, self.counters.iteration, batch.rows, purpose)

    def _count_tokens(self, batch: Batch) -> None:
        self.counters.tokens_seen += int(self.processes.total(batch.num_tokens.sum()))

    def _total(self, counts: Sequence[tuple[Tensor, ...]]) -> list[float]:
        """Counts summed over micro-batches and processes, for gradients that are averaged.

        Gradients are averaged over processes, so each total is divided by their number.
        """
        local = torch.stack([torch.stack(list(count)) for count in counts]).sum(0)
        total = self.processes.total(local.double())
        values: list[float] = (total.clamp(min=1) / self.processes.count).tolist()
        return values


def cut(batch: AnyRows, size: int) -> Iterator[AnyRows]:
    """Pieces of ``size`` rows; the last one may be smaller."""
    for start in range(0, len(batch), size):
        yield batch.narrow(start, min(start + size, len(batch)))


def _without_hidden(experience: Experience) -> Experience:
    """The update does not need the rewards' inputs, and all of a batch's would wait for it."""
    none = experience.rewards.new_empty(0)
    rollouts = replace(experience.rollouts, hidden=none, target_hidden=none)
    return replace(experience, rollouts=rollouts)
