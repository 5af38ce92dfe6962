"""Named stages of one run, with settings that may change in between and inside."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jsonargparse.typing import NonNegativeFloat, PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from refine_pl.errors import ConfigError
from refine_pl.records import RolloutPlan
from refine_pl.refine_step import LossWeights
from refine_pl.training.metrics import STAGE
from refine_pl.training.module import RefineModule
from refine_pl.training.run_place import goes_on_in_place
from refine_pl.training.run_validation import (
    run_validation,
    take_over_validation,
    validates_on_stop,
)
from refine_pl.training.settings import Settings

PLAN_FIELDS = tuple(field.name for field in dataclasses.fields(RolloutPlan))
WEIGHT_FIELDS = tuple(field.name for field in dataclasses.fields(LossWeights))
OWN_FIELDS = (*WEIGHT_FIELDS, *PLAN_FIELDS, "lr")


@dataclass
class Stage:
    """Some iterations with settings of their own; those left out are the model's.

    Args:
        iterations: batches that the stage lasts.
        ntp_weight: as in the model.
        policy_weight: as in the model; 0 draws no rollouts.
        kl_weight: as in the model.
        num_segments: as in the model.
        rollouts_per_position: as in the model.
        rollout_length: as in the model, tokens.
        lr: learning rate instead of the optimizer's.
        source: name of the data that the stage reads, where the data module has several
            (:class:`refine_pl.data.StageData`).
        settings: numeric settings of parts, by path, for example
            ``{selector.selection_temperature: 0.5}``.
        ramp: settings that run linearly from a first to a last value over the stage: any of those
            above, and any of a part by its path, for example
            ``{policy_weight: [0, 0.2], policy_loss.clip_ratio_high: [0.2, 0.3]}``; counts are
            rounded.
    """

    iterations: PositiveInt
    ntp_weight: NonNegativeFloat | None = None
    policy_weight: NonNegativeFloat | None = None
    kl_weight: NonNegativeFloat | None = None
    num_segments: PositiveInt | None = None
    rollouts_per_position: PositiveInt | None = None
    rollout_length: PositiveInt | None = None
    lr: NonNegativeFloat | None = None
    source: str | None = None
    settings: dict[str, float] | None = None
    ramp: dict[str, tuple[float, float]] | None = None

    def given(self) -> dict[str, tuple[float, float]]:
        """First and last value of everything that the stage says something about."""
        constant = {n: getattr(self, n) for n in OWN_FIELDS if getattr(self, n) is not None}
        constant |= self.settings or {}
        return {name: (value, value) for name, value in constant.items()} | (self.ramp or {})

    def settings_at(self, own: Settings, iteration: int) -> Settings:
        """The settings of the stage's ``iteration`` (from 0), where ``own`` are the model's."""
        # The last iteration has the last value; a stage of one iteration has it too.
        share = iteration / (self.iterations - 1) if self.iterations > 1 else 1.0
        now = {name: first + (last - first) * share for name, (first, last) in self.given().items()}
        plan = {name: max(1, round(now[name])) for name in PLAN_FIELDS if name in now}
        weights = {name: now[name] for name in WEIGHT_FIELDS if name in now}
        return Settings(
            dataclasses.replace(own.plan, **plan),
            dataclasses.replace(own.weights, **weights),
            now.get("lr", own.lr),
            {**own.parts, **{n: value for n, value in now.items() if n not in OWN_FIELDS}},
        )

    def plans(self, own: Settings) -> Iterator[Settings]:
        """The settings of the first and of the last iteration, and of those with another plan."""
        yield self.settings_at(own, 0)
        yield self.settings_at(own, self.iterations - 1)
        ramps = (self.ramp or {}).keys()
        seen = set()
        for iteration in range(self.iterations) if ramps & set(PLAN_FIELDS) else ():
            settings = self.settings_at(own, iteration)
            key = settings.plan, settings.weights.needs_rollouts
            if key not in seen:
                seen.add(key)
                yield settings

    def describe_ramps(self) -> str:
        """What changes inside the stage, for people; empty if nothing does."""
        ramps = (self.ramp or {}).items()
        return "".join(f"; {name} {first:g} to {last:g}" for name, (first, last) in ramps)

    def check(self, where: str, module: RefineModule) -> None:
        """Refuse what the types allow but the stage cannot mean.

        Raises:
            ConfigError: naming the stage and the key.
        """
        for name in self.ramp or {}:
            if getattr(self, name, None) is not None or name in (self.settings or {}):
                raise ConfigError(
                    f"{name} is given and ramped", where=where, allowed="one of the two"
                )
        for name, values in self.given().items():
            if name not in OWN_FIELDS:
                module.part_settings.check(name, *values, where=where, others=OWN_FIELDS)
            elif not all(math.isfinite(value) and value >= 0 for value in values):
                raise ConfigError(
                    f"{name} is to run from {values[0]:g} to {values[1]:g}",
                    where=where,
                    allowed="finite numbers of 0 or more",
                )
        if "lr" in self.given() and module.make_lr_scheduler is not None:
            raise ConfigError(
                "the stage sets the learning rate, and so does model.lr_scheduler",
                where=where,
                allowed="one of the two",
            )


class Schedule(Callback):
    """Runs named stages one after the other, then stops. Resumes wherever a checkpoint left off.

    The place in the schedule follows from the number of finished iterations alone.

    Args:
        stages: by name, in their order.
        validate: validate before the first stage, after each one, and not after each epoch (unless
            the trainer is given an interval of its own).
    """

    def __init__(self, stages: dict[str, Stage], validate: bool = True) -> None:
        if not stages or not all(stages):
            raise ConfigError(
                "a stage has no name" if stages else "the schedule has no stages",
                where="schedule.stages",
                allowed="one or more of NAME: {iterations: ...}",
            )
        self.stages = stages
        self.validate = validate
        self._resumed_from: str | None = None  # until the first batch after a resume

    @property
    def num_iterations(self) -> int:
        """Batches of all stages."""
        return sum(stage.iterations for stage in self.stages.values())

    def place(self, iteration: int) -> tuple[int, int]:
        """The index of the stage, and the iteration inside it; after the end, that of the end."""
        stages = list(self.stages.values())
        for index, stage in enumerate(stages):
            if iteration < stage.iterations:
                return index, iteration
            iteration -= stage.iterations
        return len(stages) - 1, stages[-1].iterations - 1

    def name_at(self, iteration: int) -> str:
        """The name of the stage that an iteration (from 0) belongs to."""
        return list(self.stages)[self.place(iteration)[0]]

    def boundary(self, iteration: int) -> str | None:
        """What a validation after ``iteration`` iterations is called, if a stage begins or ends."""
        if iteration == 0:
            return "before"
        end = 0
        for name, stage in self.stages.items():
            end += stage.iterations
            if iteration == end:
                return f"after {name}"
        return None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check every stage against the model and the data, and take validation over.

        Raises:
            ConfigError: if the model has no such settings, or segments do not fit.
        """
        if stage != "fit":
            return
        if not isinstance(pl_module, RefineModule):
            raise ConfigError(f"Schedule needs a RefineModule, not {type(pl_module).__name__}")
        self._share_sources(trainer)
        for name, part in self.stages.items():
            where = f"schedule.stages.{name}"
            part.check(where, pl_module)
            for settings in part.plans(pl_module.own_settings):
                pl_module.check_settings(settings, where, part.source)
                if settings.weights.kl_weight:
                    pl_module.keep_reference = True
        if self.validate:
            take_over_validation(trainer)

    def _share_sources(self, trainer: Trainer) -> None:
        """Tell a data module with several sources which of them is read when."""
        data = getattr(trainer, "datamodule", None)
        sources: Mapping[str, Any] | None = getattr(data, "sources", None)
        for name, stage in self.stages.items():
            where = f"schedule.stages.{name}"
            if sources is None and stage.source is not None:
                raise ConfigError(
                    f"stage '{name}' names the source '{stage.source}', and the data are "
                    f"{type(data).__name__}, which has none",
                    where=where,
                    way_out="data: refine_pl.data.StageData with sources",
                )
            if sources is not None and stage.source not in sources:
                raise ConfigError(
                    f"stage '{name}' names "
                    + (f"the source '{stage.source}'" if stage.source else "no source"),
                    where=where,
                    allowed=f"source: one of {', '.join(sources)}",
                )
        if data is not None and sources is not None:
            data.set_plan([(stage.source, stage.iterations) for stage in self.stages.values()])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate before the first stage, but not again on resume.

        Raises:
            ConfigError: the checkpoint of another run has finished the schedule already.
        """
        assert isinstance(pl_module, RefineModule)
        self._resumed_from = None if trainer.ckpt_path is None else str(trainer.ckpt_path)
        if pl_module.iteration >= self.num_iterations and goes_on_in_place(trainer):
            trainer.should_stop = True
        elif pl_module.iteration >= self.num_iterations:
            last = list(self.stages)[-1]
            raise ConfigError(
                f"nothing is left to train: the checkpoint has made {pl_module.iteration} "
                f"iterations, and the schedule has {self.num_iterations}",
                where="schedule.stages",
                allowed="a checkpoint from before the end of the schedule",
                way_out="one more stage, or a longer one: "
                f"--schedule.stages.{last}.iterations N; refine-pl validate measures it as it is",
            )
        pl_module.begin_stage(self.place(pl_module.iteration)[0])
        if pl_module.iteration == 0 and self.validate:
            run_validation(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Give the module the settings of this iteration."""
        assert isinstance(pl_module, RefineModule)
        _, iteration = self.place(pl_module.iteration)
        name = self.name_at(pl_module.iteration)
        stage = self.stages[name]
        pl_module.settings = stage.settings_at(pl_module.own_settings, iteration)
        if iteration == 0 or self._resumed_from is not None:
            where = f"iteration {iteration + 1} of {stage.iterations}"
            if iteration == 0:
                where = f"{stage.iterations} iteration{'s' if stage.iterations > 1 else ''}"
            if self._resumed_from is not None:
                where += f", resumed from {self._resumed_from}"
            self._resumed_from = None
            # At its end: a ramp of the weight may begin at 0.
            last = stage.settings_at(pl_module.own_settings, stage.iterations - 1)
            settings = pl_module.settings if pl_module.settings.weights.needs_rollouts else last
            what = pl_module.describe(settings, len(batch) * trainer.world_size, batch)
            pl_module.print(f"stage '{name}', {where}: {what}{stage.describe_ramps()}")

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Validate after a stage, and stop after the last one."""
        assert isinstance(pl_module, RefineModule)
        index, _ = self.place(pl_module.iteration - 1)
        pl_module.log_scalars({STAGE: index}, pl_module.log_is_due)
        if self.boundary(pl_module.iteration) is None:
            return
        pl_module.begin_stage(self.place(pl_module.iteration)[0])
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


def find_schedule(trainer: Trainer) -> Schedule | None:
    """The trainer's schedule, if it has one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, Schedule)), None)
