"""The updates that are compared, and no number without this: they compute the same thing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from refine_pl.backbones.base import FastWeightLM
from refine_pl.records import Batch, Experience
from refine_pl.rollouts.base import RolloutGenerator
from refine_pl.training.settings import Settings
from refine_pl.training.updater import Updater


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to make an update."""

    name: str
    settings: Settings
    generator: RolloutGenerator  # how rollouts are drawn, and read again in the update
    update: Literal["joined", "two_pass"] = "joined"  # passes over the sequences

    def choose(self, updater: Updater) -> None:
        """Let the updater make its updates this way."""
        updater.step.generator = self.generator
        updater.sizes = replace(updater.sizes, update=self.update)

    def run(self, updater: Updater, batch: Batch) -> None:
        """One whole update, as training makes it."""
        self.choose(updater)
        updater.refine(batch, self.settings)
        updater.counters.iteration += 1


def arms_of(own: Settings, forked: RolloutGenerator, recompute: RolloutGenerator) -> list[Arm]:
    """Plain training; ReFINE joined, in two passes, with more rollouts, segments; recomputed."""
    one = replace(own, plan=replace(own.plan, rollouts_per_position=1))
    eight = replace(own, plan=replace(one.plan, rollouts_per_position=8))
    dense = replace(own, plan=replace(one.plan, num_segments=64))
    shape = f"S={one.plan.num_segments}"
    return [
        Arm("SFT", own.without_rollouts(), forked),
        Arm(f"ReFINE joined, {shape}, N=1", one, forked),
        Arm(f"ReFINE two-pass, {shape}, N=1", one, forked, "two_pass"),
        Arm(f"ReFINE joined, {shape}, N=8", eight, forked),
        Arm("ReFINE joined, S=64, N=1", dense, forked),
        Arm(f"ReFINE recompute, {shape}, N=1", one, recompute, "two_pass"),
    ]


@dataclass(frozen=True, slots=True)
class Equality:
    """How far two ways to make the same update are apart."""

    same_tokens: float  # share of rollout tokens that are the same
    logprobs: float  # largest difference of log-probabilities, nats
    loss: float  # relative difference
    gradient: float  # norm of the difference of all gradients over their norm

    def holds(self, tolerance: float) -> bool:
        """Whether they are the same but for rounding."""
        same = self.same_tokens == 1.0 or tolerance > 1e-3
        return same and max(self.logprobs, self.loss, self.gradient) < tolerance


def compare(updater: Updater, batch: Batch, forked: Arm, other: Arm) -> Equality:
    """Draw rollouts both ways, and take the gradients of the same rollouts both ways.

    A joined update draws its own: the same ones, since nothing changes before it.
    """
    drawn, results = [], []
    for arm in (forked, other):
        arm.choose(updater)
        drawn.append(updater.draw(batch, arm.settings))
    (first,), (second,) = drawn  # one micro-batch each
    assert isinstance(first, Experience)
    assert isinstance(second, Experience)
    valid = first.rollouts.valid
    same = (first.rollouts.tokens == second.rollouts.tokens)[valid]
    reached = same.cumprod(-1).bool()  # after the first difference the texts differ
    apart = (first.rollouts.old_logprobs - second.rollouts.old_logprobs)[valid].abs()
    for arm in (forked, other):
        arm.choose(updater)
        if updater.joins(arm.settings):
            loss = updater.join(batch, arm.settings)
        else:
            loss = updater.accumulate([first], arm.settings)
        results.append((loss, _gradient(updater.policy)))
        updater.optimizer.zero_grad()
    (loss_a, grad_a), (loss_b, grad_b) = results
    return Equality(
        same_tokens=float(same.float().mean()),
        logprobs=float(apart.where(reached, 0).max()),
        loss=float((loss_a - loss_b).abs() / loss_b.abs()),
        gradient=float((grad_a - grad_b).norm() / grad_b.norm()),
    )


def _gradient(policy: FastWeightLM) -> Tensor:
    return torch.cat([p.grad.flatten().double() for p in policy.parameters() if p.grad is not None])
