"""The updates that are compared: each is everything from sequences to an optimizer step."""

from __future__ import annotations

from dataclasses import dataclass, replace

from refine_pl.records import Batch
from refine_pl.rollouts.base import RolloutGenerator
from refine_pl.training.settings import Settings
from refine_pl.training.updater import Updater


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to make an update."""

    name: str
    settings: Settings
    generator: RolloutGenerator  # how rollouts are drawn, and read again in the update

    def run(self, updater: Updater, batch: Batch) -> None:
        """One whole update, as training makes it."""
        updater.step.generator = self.generator
        updater.refine(batch, self.settings)
        updater.counters.iteration += 1


def arms_of(own: Settings, forked: RolloutGenerator, recompute: RolloutGenerator) -> list[Arm]:
    """Plain training, the recipe with one rollout, more rollouts, more segments, recomputation."""
    one = replace(own, plan=replace(own.plan, rollouts_per_position=1))
    eight = replace(own, plan=replace(one.plan, rollouts_per_position=8))
    dense = replace(own, plan=replace(one.plan, num_segments=64))
    shape = f"S={one.plan.num_segments}"
    return [
        Arm("SFT", own.without_rollouts(), forked),
        Arm(f"ReFINE forked, {shape}, N=1", one, forked),
        Arm(f"ReFINE forked, {shape}, N=8", eight, forked),
        Arm("ReFINE forked, S=64, N=1", dense, forked),
        Arm(f"ReFINE recompute, {shape}, N=1", one, recompute),
    ]
