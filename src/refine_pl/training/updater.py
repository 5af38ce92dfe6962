"""From a batch to optimizer steps: the engine of every phase, and of the benchmark.

A batch is cut into mini-batches, one optimizer step each, and these into micro-batches, one
backward pass each. What one update computes is in ``refine_step.py``; which updates a batch is made
into, a phase says (``phases.py``). Nothing here knows of Lightning.

Where the rollouts of a mini-batch are drawn under the weights that its update starts from, drawing
and update share one pass over the sequences (*joined*). Otherwise, for the later mini-batches of
rollouts drawn for a whole batch, there are *two passes*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

from refine_kernels.host import on_host
from refine_pl.backbones.base import FastWeightLM
from refine_pl.errors import ConfigError
from refine_pl.faults import (
    NotFiniteError,
    PartError,
    StopError,
    blame,
    describe_tensor,
    fault,
)
from refine_pl.losses.base import LossSum
from refine_pl.numbers import describe_not_finite, not_finite
from refine_pl.objectives.base import AnswerObjective
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch, Drawn, Experience, Packs, Prefill
from refine_pl.refine_step import Counts, RefineStep
from refine_pl.stopwatch import Stopwatch
from refine_pl.task_records import TaskBatch
from refine_pl.training.counters import Counters
from refine_pl.training.drawn import without_hidden, without_rollouts
from refine_pl.training.settings import Settings
from refine_pl.training.sharding import whole
from refine_pl.training.sizes import Processes, Sizes, Stepper, cut, passes
from refine_pl.training.tally import Tally, tally_experience

T = TypeVar("T")

OBJECTIVE = "phase.init_args.objective"


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
        max_skipped_steps: steps in a row that may be skipped because the gradient is not finite.

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
        max_skipped_steps: int = 20,
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
        self.max_skipped_steps = max_skipped_steps
        self.counters = Counters()
        self.tally = Tally()
        self.stopwatch = Stopwatch(self.device)

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return next(self.policy.parameters()).device

    def refine(self, batch: Batch | Packs, settings: Settings, purpose: str = "train") -> None:
        """ReFINE on a batch of this process: rollouts, then a step for each mini-batch.

        Args:
            batch: sequences, or packs of them.
            settings: weights and sizes; without a policy or KL term nothing is drawn.
            purpose: with the iteration and the rows, the name of the random streams.
        """
        rows = self.sizes.minibatch
        minibatches = list(cut(batch, len(batch) if rows is None else rows // self.processes.count))
        self._count_tokens(batch)
        joined = self.joins(settings)
        if self.sizes.rollouts_per == "minibatch":
            for minibatch in minibatches:
                if joined:
                    self.join(minibatch, settings, purpose)
                    self._descend()
                else:
                    self.update(self.draw(minibatch, settings, purpose), settings)
            return
        if joined:  # the first one's gradients wait until the others' rollouts are drawn
            self.join(minibatches[0], settings, purpose)
        rest = minibatches[1:] if joined else minibatches
        drawn = [self.draw(minibatch, settings, purpose) for minibatch in rest]
        if joined:
            self._descend()
        for each in drawn:
            self.update(each, settings)

    def joins(self, settings: Settings) -> bool:
        """Whether drawing and update share a pass where they can."""
        possible = self.sizes.update != "two_pass" and self.step.generator.joins
        return possible and settings.weights.needs_rollouts

    def answer(self, batch: TaskBatch, objective: AnswerObjective, tokenizer: Any) -> None:
        """One optimizer step on the answers of a batch of this process."""
        self._count_tokens(objective.reads(batch))
        prepared = []
        with whole(self.policy):
            for rows in cut(batch, self.sizes.microbatch):
                random = self._random(rows.prompts, "answer")
                with self.stopwatch("answer"), self.autocast(), blame(OBJECTIVE, objective):
                    prepared.append(objective.prepare(self.policy, rows, tokenizer, random))
        with blame(OBJECTIVE, objective):
            counts = [torch.as_tensor(objective.count(rows)) for rows in prepared]
        (count,) = self._total([(number,) for number in counts])

        def loss_of(rows: Any) -> LossSum:
            with blame(OBJECTIVE, objective):
                loss: Any = objective.loss(self.policy, rows)
            if not isinstance(loss, LossSum):
                came = f"returned {describe_tensor(loss)} as a loss"
                raise fault(OBJECTIVE, objective, came, "a refine_pl.losses.LossSum")
            return LossSum(loss.total / count, loss.sums)

        self._accumulate(prepared, loss_of)
        self._descend()

    def draw(
        self, minibatch: Batch | Packs, settings: Settings, purpose: str = "train"
    ) -> list[Experience | Batch]:
        """Rollouts for each micro-batch, or the bare micro-batches if no term needs them.

        Those of several are drawn together: ``sizes.draw_batch``.

        Raises:
            PartError: a part failed, on this process or on another one: all of them raise.
        """
        size = self.sizes.microbatch
        if not settings.weights.needs_rollouts:
            return list(passes(minibatch, size))
        at_once = self.sizes.drawn_at_once(self.policy, self.step.generator)
        drawn: list[Experience | Batch] = []
        failed: PartError | None = None
        with whole(self.policy):
            for rows in passes(minibatch, at_once):
                one = isinstance(minibatch, Packs) or len(rows) <= size
                try:
                    for rolled in self._roll(rows, settings, purpose, None if one else size):
                        drawn.append(without_hidden(self._judge(rolled)))
                except PartError as error:
                    failed = error
                    break
        self._agree(failed)
        return drawn

    def _roll(
        self,
        rows: Batch,
        settings: Settings,
        purpose: str,
        size: int | None = None,
        prefill: Prefill | None = None,
    ) -> Iterable[Drawn | Batch]:
        """Rollouts that are drawn together, in pieces of ``size``; bare rows if not finite."""
        random = self._random(rows, purpose)
        found: Drawn | Batch = rows
        # If it is not finite, the update's gradient is not either, on all processes.
        with suppress(NotFiniteError), self.autocast():
            found = self.step.roll(
                self.policy, rows, settings.plan, random, self.stopwatch, prefill
            )
        return [found] if size is None else cut(found, size)

    def _judge(self, drawn: Drawn | Batch) -> Experience:
        """The rewards and advantages of a micro-batch, for the log as well."""
        step = self.step
        if isinstance(drawn, Batch):
            experience = without_rollouts(step, drawn)
        else:
            with self.autocast():
                experience = step.judge(drawn, self.stopwatch)
        tally_experience(self.tally, experience, step.advantage.group_by, step.reward.faults)
        if self.observe is not None and isinstance(drawn, Drawn):
            self.observe(experience)
        return experience

    def _agree(self, failed: StopError | None) -> None:
        """Raise on all processes if a part failed on one: none waits for another in vain."""
        if float(self._over_processes(torch.tensor(float(failed is not None)))):
            error = failed or PartError("a part failed on another process, which says what it was")
            error.everywhere = True
            raise error

    def update(self, micro_batches: Sequence[Experience | Batch], settings: Settings) -> None:
        """One optimizer step on what :meth:`draw` returned."""
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

    def join(self, minibatch: Batch | Packs, settings: Settings, purpose: str = "train") -> Tensor:
        """The gradients of one update, its rollouts drawn on the way, without a step.

        Equal to :meth:`draw` and :meth:`accumulate`, for one pass over the sequences less.

        Returns:
            The loss of this process's share, detached.

        Raises:
            ConfigError: the selector chose other positions than it had announced.
        """
        micro_batches = list(passes(minibatch, self.sizes.microbatch))
        # Sums are divided by the counts of the whole step, before its last rollouts are drawn.
        announced = [self.step.expected_counts(rows, settings.plan) for rows in micro_batches]
        counts = Counts(*self._total(announced))
        found = []

        def loss_of(rows: Batch) -> LossSum:
            with self.stopwatch("update"):
                reading = self.step.open(self.policy, rows)
            failed, experience = None, None
            with whole(self.policy, between=True):
                try:
                    (rolled,) = self._roll(rows, settings, purpose, prefill=reading.prefill())
                    experience = self._judge(rolled)
                except PartError as error:
                    failed = error
            self._agree(failed)
            assert experience is not None
            found.append(self.step.counts(experience))
            experience = without_hidden(experience)
            with self.stopwatch("update"):
                passed = self.step.close(self.policy, reading, experience)
                return self.step.loss(
                    self.policy, experience, counts, settings.weights, self.reference, passed
                )

        loss = self._accumulate(micro_batches, loss_of, watch=False)
        # Of a model that is not finite nothing was drawn; its step is skipped.
        if bool(loss.isfinite()) and not torch.equal(_numbers(found), _numbers(announced)):
            raise self._announced_others()
        return loss

    def _announced_others(self) -> ConfigError:
        selector = type(self.step.selector).__name__
        return ConfigError(
            f"{selector} chose more or fewer positions than its count() says",
            where="model.selector",
            allowed="as many valid positions in each row as count(num_tokens, plan) returns",
            way_out=f"make {selector}.count agree, or set model.update to two_pass",
        )

    def _accumulate(
        self, micro_batches: Sequence[T], loss_of: Callable[[T], LossSum], watch: bool = True
    ) -> Tensor:
        """Add up the gradients; ``watch`` unless ``loss_of`` charges its own time."""
        total = torch.zeros((), device=self.device)
        for i, micro_batch in enumerate(micro_batches):
            with self.processes.synchronised(i == len(micro_batches) - 1):
                with self.stopwatch("update") if watch else nullcontext(), self.autocast():
                    loss = loss_of(micro_batch)
                # The types of the backward pass were settled in the forward pass, but an autocast
                # of the caller's may reach around the whole step.
                with self.stopwatch("update"), torch.autocast(self.device.type, enabled=False):
                    self.backward(loss.total)
            for name, (value, count) in loss.sums.items():
                self.tally.add(name, value, count)
            total = total + loss.total.detach()
        return total

    def _descend(self) -> None:
        """Clip and step. A gradient that is not finite is dropped, on every process alike."""
        with self.stopwatch("update"):
            self._clip_and_step(self.optimizer)
        self.counters.updates += 1
        if self.counters.skipped_in_a_row:
            self._check_skipped()

    def _clip_and_step(self, optimizer: Stepper) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.gradient_clip)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if bool(norm.isfinite()):
            self.tally.add("optim/grad_norm", norm, 1)
            self.counters.skipped_in_a_row = 0
        else:
            self.counters.skipped_steps += 1
            self.counters.skipped_in_a_row += 1
            # Without gradients the step changes nothing. It is taken so that a trainer's count of
            # steps stays a multiple of the updates per batch, which checkpoints rely on.
            optimizer.zero_grad()
        optimizer.step()
        optimizer.zero_grad()

    def _check_skipped(self) -> None:
        """After a skipped step: go on only if a later one may succeed."""
        counters = self.counters
        lost = not_finite(self.policy.named_parameters())
        number = torch.tensor(float(len(lost)), device=self.device)
        if int(self.processes.total(number)):  # of a sharded model each process sees a part
            what = describe_not_finite(lost) if lost else "those of another process are not"
            raise _everywhere(NotFiniteError(f"the model's weights are not finite: {what}"))
        if counters.skipped_in_a_row >= self.max_skipped_steps:
            raise _everywhere(
                NotFiniteError(
                    f"{counters.skipped_in_a_row} steps in a row were skipped, because the "
                    f"gradient was NaN or infinite; {counters.skipped_steps:,} of "
                    f"{counters.updates:,} steps in all",
                    where="model.max_skipped_steps",
                    allowed=f"fewer than {self.max_skipped_steps} in a row",
                )
            )

    def _random(self, batch: Batch, purpose: str) -> RowRandom:
        return RowRandom(self.seed, self.counters.iteration, batch.rows, purpose)

    def _count_tokens(self, batch: Batch | Packs) -> None:
        self.counters.tokens_seen += int(self._over_processes(on_host(batch.num_tokens).sum()))

    def _over_processes(self, values: Tensor) -> Tensor:
        """The sum over all processes; where there is one, its values stay where they are."""
        one = self.processes.count == 1
        return values if one else self.processes.total(values.to(self.device))

    def _total(self, counts: Sequence[tuple[Tensor, ...]]) -> list[float]:
        """Counts summed over micro-batches and processes, for gradients that are averaged.

        Gradients are averaged over processes, so each total is divided by their number.
        """
        local = torch.stack([torch.stack(list(count)) for count in counts]).sum(0)
        total = self._over_processes(local.double())
        values: list[float] = (total.clamp(min=1) / self.processes.count).tolist()
        return values


def _everywhere(error: StopError) -> StopError:
    error.everywhere = True
    return error


def _numbers(counts: Sequence[Counts[Tensor]]) -> Tensor:
    """``[micro-batches, 3]`` on the host, which waits for the device once."""
    return torch.stack([torch.stack(list(count)) for count in counts]).double().cpu()
