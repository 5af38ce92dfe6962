"""No number without this: the arms that are compared compute the same thing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from refine_pl.backbones.base import FastWeightLM
from refine_pl.benchmark.arms import Arm
from refine_pl.records import Batch, Experience
from refine_pl.training.updater import Updater


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
    """Draw rollouts both ways, and take the gradients of the same rollouts both ways."""
    drawn, results = [], []
    for arm in (forked, other):
        updater.step.generator = arm.generator
        drawn.append(updater.draw(batch, arm.settings))
    (first,), (second,) = drawn  # one micro-batch each
    assert isinstance(first, Experience)
    assert isinstance(second, Experience)
    valid = first.rollouts.valid
    same = (first.rollouts.tokens == second.rollouts.tokens)[valid]
    reached = same.cumprod(-1).bool()  # after the first difference the texts differ
    apart = (first.rollouts.old_logprobs - second.rollouts.old_logprobs)[valid].abs()
    for arm in (forked, other):
        updater.step.generator = arm.generator
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
