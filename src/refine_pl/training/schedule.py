"""Several phases in one run, with settings that may change in between and inside."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jsonargparse.typing import NonNegativeFloat, PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from refine_pl.errors import ConfigError, nearest
from refine_pl.records import RolloutPlan
from refine_pl.refine_step import LossWeights
from refine_pl.training.checks import check_plan
from refine_pl.training.module import RefineModule
from refine_pl.training.run_phases import describe_batch, draws_rollouts, training_phases
from refine_pl.training.run_validation import (
    run_validation,
    take_over_validation,
    validates_on_stop,
)
from refine_pl.training.updater import Settings

PLAN_FIELDS = tuple(field.name for field in dataclasses.fields(RolloutPlan))
WEIGHT_FIELDS = tuple(field.name for field in dataclasses.fields(LossWeights))
SETTINGS = (*WEIGHT_FIELDS, *PLAN_FIELDS, "lr")


@dataclass
class Phase:
    """Some iterations with settings of their own; those left out are the model's.

    Args:
        name: shown on the progress bar and in the summary.
        iterations: batches that the phase lasts.
        ntp_weight: as in the model.
        policy_weight: as in the model; 0 draws no rollouts.
        kl_weight: as in the model.
        num_segments: as in the model.
        rollouts_per_position: as in the model.
        rollout_length: as in the model, tokens.
        lr: learning rate instead of the optimizer's.
        source: name of the data that the phase reads, where the data module has several
            (:class:`refine_pl.data.PhaseData`).
        ramp: settings that run linearly from a first to a last value over the phase, for example
            ``{policy_weight: [0, 0.2]}``; counts are rounded.
    """

    name: str
    iterations: PositiveInt
    ntp_weight: NonNegativeFloat | None = None
    policy_weight: NonNegativeFloat | None = None
    kl_weight: NonNegativeFloat | None = None
    num_segments: PositiveInt | None = None
    rollouts_per_position: PositiveInt | None = None
    rollout_length: PositiveInt | None = None
    lr: NonNegativeFloat | None = None
    source: str | None = None
    ramp: dict[str, tuple[NonNegativeFloat, NonNegativeFloat]] | None = None

    def settings(self, own: Settings, iteration: int) -> Settings:
        """The settings of the phase's ``iteration`` (from 0), where ``own`` are the model's."""
        given: dict[str, Any] = {
            name: getattr(self, name) for name in SETTINGS if getattr(self, name) is not None
        }
        # The last iteration has the last value; a phase of one iteration has it too.
        share = iteration / (self.iterations - 1) if self.iterations > 1 else 1.0
        for name, (first, last) in self._ramped():
            value = first + (last - first) * share
            given[name] = max(1, round(value)) if name in PLAN_FIELDS else value
        plan = {name: given[name] for name in PLAN_FIELDS if name in given}
        weights = {name: given[name] for name in WEIGHT_FIELDS if name in given}
        return Settings(
            dataclasses.replace(own.plan, **plan),
            dataclasses.replace(own.weights, **weights),
            given.get("lr", own.lr),
        )

    @property
    def ramps(self) -> str:
        """What changes inside the phase, for people; empty if nothing does."""
        ramps = [f"; {name} {first:g} to {last:g}" for name, (first, last) in self._ramped()]
        return "".join(ramps)

    def _ramped(self) -> list[tuple[str, tuple[float, float]]]:
        return list((self.ramp or {}).items())

    def check(self) -> None:
        """Refuse what the types allow but the phase cannot mean.

        Raises:
            ConfigError: naming the phase and the key.
        """
        for name, _ in self._ramped():
            if name not in SETTINGS:
                close = nearest(name, SETTINGS)
                raise ConfigError(
                    f"phase '{self.name}' ramps '{name}', which is not a setting",
                    where="PhaseSchedule.phases",
                    allowed=", ".join(SETTINGS),
                    way_out=f"did you mean '{close}'?" if close else None,
                )
            if getattr(self, name) is not None:
                raise ConfigError(
                    f"phase '{self.name}' gives '{name}' and ramps it",
                    where="PhaseSchedule.phases",
                    allowed="one of the two",
                )


class PhaseSchedule(Callback):
    """Runs named phases one after the other, then stops. Resumes wherever a checkpoint left off.

    The place in the schedule follows from the number of finished iterations alone.

    Args:
        phases: in their order.
        validate: validate before the first phase, after each one, and not after each epoch (unless
            the trainer is given an interval of its own).
    """

    def __init__(self, phases: list[Phase], validate: bool = True) -> None:
        _check_names(phases)
        for phase in phases:
            phase.check()
        self.phases = phases
        self.validate = validate
        self._resumed_from: str | None = None  # until the first batch after a resume

    @property
    def num_iterations(self) -> int:
        """Batches of all phases."""
        return sum(phase.iterations for phase in self.phases)

    def place(self, iteration: int) -> tuple[int, int]:
        """The index of the phase, and the iteration inside it; behind the end, that of the end."""
        for index, phase in enumerate(self.phases):
            if iteration < phase.iterations:
                return index, iteration
            iteration -= phase.iterations
        return len(self.phases) - 1, self.phases[-1].iterations - 1

    def boundary(self, iteration: int) -> str | None:
        """What a validation after ``iteration`` iterations is called, if a phase begins or ends."""
        if iteration == 0:
            return "before"
        end = 0
        for phase in self.phases:
            end += phase.iterations
            if iteration == end:
                return f"after {phase.name}"
        return None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check every phase against the data, and take validation over from Lightning.

        Raises:
            ConfigError: if the model has no such settings, or segments do not fit.
        """
        if stage != "fit":
            return
        if not isinstance(pl_module, RefineModule):
            raise ConfigError(f"PhaseSchedule needs a RefineModule, not {type(pl_module).__name__}")
        self._share_sources(trainer)
        for phase in self.phases:
            for iteration in (0, phase.iterations - 1):
                settings = phase.settings(pl_module.own_settings, iteration)
                if draws_rollouts(pl_module, settings):
                    where = f"phase '{phase.name}'"
                    check_plan(trainer, pl_module, settings.plan, where, phase.source)
                if settings.weights.kl_weight:
                    pl_module.keep_reference = True
        if self.validate:
            take_over_validation(trainer)

    def _share_sources(self, trainer: Trainer) -> None:
        """Tell a data module with several sources which of them is read when."""
        data = getattr(trainer, "datamodule", None)
        sources = getattr(data, "sources", None)
        for phase in self.phases:
            if sources is None and phase.source is not None:
                raise ConfigError(
                    f"phase '{phase.name}' names the source '{phase.source}', and the data are "
                    f"{type(data).__name__}, which has none",
                    where="PhaseSchedule.phases",
                    way_out="data: refine_pl.data.PhaseData with sources",
                )
            if sources is not None and phase.source not in sources:
                raise ConfigError(
                    f"phase '{phase.name}' names "
                    + (f"the source '{phase.source}'" if phase.source else "no source"),
                    where="PhaseSchedule.phases",
                    allowed=f"source: one of {', '.join(sources)}",
                )
        if data is not None and sources is not None:
            data.set_plan([(phase.source, phase.iterations) for phase in self.phases])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate before the first phase, but not again on resume; stop if nothing is left."""
        assert isinstance(pl_module, RefineModule)
        self._resumed_from = None if trainer.ckpt_path is None else str(trainer.ckpt_path)
        if pl_module.iteration >= self.num_iterations:
            trainer.should_stop = True
        elif pl_module.iteration == 0 and self.validate:
            run_validation(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Give the module the settings of this iteration."""
        assert isinstance(pl_module, RefineModule)
        index, iteration = self.place(pl_module.iteration)
        phase = self.phases[index]
        pl_module.settings = phase.settings(pl_module.own_settings, iteration)
        if iteration == 0 or self._resumed_from is not None:
            where = f"iteration {iteration + 1} of {phase.iterations}"
            if iteration == 0:
                where = f"{phase.iterations} iteration{'s' if phase.iterations > 1 else ''}"
            if self._resumed_from is not None:
                where += f", resumed from {self._resumed_from}"
            self._resumed_from = None
            what = self._describe(pl_module, batch, phase, len(batch) * trainer.world_size)
            pl_module.print(f"phase '{phase.name}', {where}: {what}")

    def _describe(self, module: RefineModule, batch: Any, phase: Phase, size: int) -> str:
        """What a batch of ``size`` rows, over all processes, is made into in ``phase``."""
        settings = module.settings
        if not settings.weights.needs_rollouts:  # a ramp of the weight may begin at 0
            settings = phase.settings(module.own_settings, phase.iterations - 1)
        reader = next((c for c in training_phases(module) if c.reads(batch)), None)
        return describe_batch(module, reader, size, settings) + phase.ramps

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Validate after a phase, and stop after the last one."""
        assert isinstance(pl_module, RefineModule)
        index, _ = self.place(pl_module.iteration - 1)
        pl_module.log_scalars({"run/stage": index}, pl_module.log_is_due)
        if self.boundary(pl_module.iteration) is None:
            return
        last = pl_module.iteration == self.num_iterations
        if self.validate and not (last and validates_on_stop(trainer)):
            run_validation(trainer)
        trainer.should_stop = trainer.should_stop or last

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if something else ended the run before the schedule did."""
        assert isinstance(pl_module, RefineModule)
        if pl_module.iteration < self.num_iterations:
            rank_zero_warn(
                f"The run ended after {pl_module.iteration} of the schedule's "
                f"{self.num_iterations} iterations. To run it to its end, set trainer.max_epochs "
                "to -1 and leave trainer.max_steps out."
            )


def find_schedule(trainer: Trainer) -> PhaseSchedule | None:
    """The trainer's schedule, if it has one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, PhaseSchedule)), None)


def _check_names(phases: Sequence[Phase]) -> None:
    if not phases:
        raise ConfigError(
            "the schedule has no phases",
            where="PhaseSchedule.phases",
            allowed="one or more of {name: ..., iterations: ...}",
        )
    names = [phase.name for phase in phases]
    for name in names:
        if not name or names.count(name) > 1:
            raise ConfigError(
                f"the schedule has {names.count(name)} phases named '{name}'",
                where="PhaseSchedule.phases",
                allowed="a name of its own for each phase",
            )
