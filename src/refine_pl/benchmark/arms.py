"""The updates that are compared: each is everything from sequences to an optimizer step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from refine_pl.backbones.base import FastWeightLM
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch, Experience, RolloutPlan
from refine_pl.refine_step import Counts, LossWeights, RefineStep
from refine_pl.rollouts.base import RolloutGenerator
from refine_pl.stopwatch import Stopwatch


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to make an update."""

    name: str
    plan: RolloutPlan | None  # None: plain next-token training
    generator: RolloutGenerator | None = None  # how rollouts are drawn and replayed


class Updater:
    """Makes updates of one policy as different arms would.

    Args:
        policy: the model.
        step: the parts of the algorithm; an arm's generator replaces its own.
        optimizer: over the policy's parameters.
        batch: the sequences of one optimizer step, one micro-batch.
        weights: of the loss's terms.
        gradient_clip: largest gradient norm.
        precision: context that every forward runs in, for example an autocast.
    """

    def __init__(
        self,
        policy: FastWeightLM,
        step: RefineStep,
        optimizer: Optimizer,
        batch: Batch,
        weights: LossWeights,
        gradient_clip: float,
        precision: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.policy = policy
        self.step = step
        self.optimizer = optimizer
        self.batch = batch
        self.weights = weights
        self.gradient_clip = gradient_clip
        self.precision = precision
        self._update = 0

    def __call__(self, arm: Arm, stopwatch: Stopwatch) -> None:
        """One whole update: rollouts if the arm has any, then loss, gradients and a step."""
        self._update += 1
        with self.precision():
            experience = self.draw(arm, stopwatch, self._update)
        with stopwatch("update"):
            with self.precision():
                loss = self.loss(arm, experience)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.gradient_clip)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def draw(self, arm: Arm, stopwatch: Stopwatch, update: int) -> Experience | Batch:
        """Prefill, positions, rollouts, rewards and advantages; the bare batch without a plan."""
        if arm.plan is None or arm.generator is None:
            return self.batch
        self.step.generator = arm.generator
        generator = RowRandom(0, update, self.batch.rows)
        return self.step.draw(self.policy, self.batch, arm.plan, generator, stopwatch)

    def loss(self, arm: Arm, experience: Experience | Batch) -> Tensor:
        """The loss of the whole batch."""
        if arm.generator is not None:
            self.step.generator = arm.generator
        counts = Counts(*(max(1.0, float(n)) for n in self.step.counts(experience)))
        return self.step.loss(self.policy, experience, counts, self.weights).total


def arms_of(plan: RolloutPlan, forked: RolloutGenerator, recompute: RolloutGenerator) -> list[Arm]:
    """Plain training, the recipe with one rollout, more rollouts, more segments, recomputation."""
    one = replace(plan, rollouts_per_position=1)
    shape = f"S={one.num_segments}"
    return [
        Arm("SFT", None),
        Arm(f"ReFINE forked, {shape}, N=1", one, forked),
        Arm(f"ReFINE forked, {shape}, N=8", replace(one, rollouts_per_position=8), forked),
        Arm("ReFINE forked, S=64, N=1", replace(one, num_segments=64), forked),
        Arm(f"ReFINE recompute, {shape}, N=1", one, recompute),
    ]
