"""The phases of a run, and what they make of a batch: optimizer steps, rollouts, a line for people.

A phase is a callback of the trainer that says what a batch of training does
(:class:`refine_pl.callbacks.PhaseCallback`). Without one, batches of sequences are refined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refine_pl.training.module import RefineModule
    from refine_pl.training.updater import Settings


def training_phases(module: RefineModule) -> list[Any]:
    """The callbacks of the module's trainer that say what a batch of training does."""
    callbacks = module.trainer.callbacks  # type: ignore[attr-defined]
    return [c for c in callbacks if getattr(c, "trains", False)]


def updates_per_batch(module: RefineModule, batch_size: int) -> int | None:
    """Optimizer steps of a batch, ``None`` if the run has phases that differ in it."""
    refine = 1 if module.steps == "per_batch" else batch_size // module.minibatch_size
    counts = {phase.updates_per_batch(refine) for phase in training_phases(module)} or {refine}
    return counts.pop() if len(counts) == 1 else None


def draws_rollouts(module: RefineModule, settings: Settings) -> bool:
    """Whether a phase of this run draws rollouts under these settings."""
    phases = training_phases(module)
    if not phases:
        return settings.weights.needs_rollouts
    return any(phase.draws(settings) for phase in phases)


def describe_batch(
    module: RefineModule, reader: Any | None, batch_size: int, settings: Settings
) -> str:
    """What a batch of so many rows is made into by the phase that reads it, or without one."""
    if reader is None:
        return describe_iteration(module, batch_size, settings)
    text: str = reader.describe(module, batch_size, settings)
    return text


def describe_iteration(module: RefineModule, batch_size: int, settings: Settings) -> str:
    """What ReFINE makes of a batch of ``batch_size`` sequences over all processes."""
    size = batch_size if module.steps == "per_batch" else module.minibatch_size
    updates = batch_size // size
    text = f"{batch_size:,} sequences = {updates} update{'s' if updates > 1 else ''} of {size}"
    if not settings.weights.needs_rollouts:
        return f"{text}; no rollouts"
    plan = settings.plan
    length = getattr(getattr(module.trainer, "datamodule", None), "sequence_length", None)
    positions = plan.num_segments
    if isinstance(length, int):
        positions = module.refine_step.selector.count(length, plan)
    rollouts = batch_size * positions * plan.rollouts_per_position
    tokens = f"{plan.rollout_length} token{'s' if plan.rollout_length > 1 else ''}"
    return f"{text}; {rollouts:,} rollouts of {tokens}"
