"""The phases of training: who decides what one batch does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from refine_pl.errors import ConfigError
from refine_pl.objectives import AnswerObjective
from refine_pl.parts import SUPERVISED, build_part
from refine_pl.records import Batch
from refine_pl.task_records import TaskBatch
from refine_pl.training.module import RefineModule
from refine_pl.training.run_phases import describe_iteration
from refine_pl.training.updater import Settings


class PhaseCallback(Callback):
    """What every phase shares: a name, and that it is given once.

    Attributes:
        phase: the name.
        trains: whether it says what a batch of ``fit`` does.
    """

    phase: ClassVar[str]
    trains: ClassVar[bool] = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the model is a RefineModule, and that the phase is given once.

        Raises:
            ConfigError: otherwise.
        """
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        given = sum(type(c) is type(self) for c in callbacks)
        if given > 1:
            raise ConfigError(
                f"trainer.callbacks names {type(self).__name__} {given} times",
                allowed="each phase once",
            )
        if not isinstance(pl_module, RefineModule):
            raise ConfigError(
                f"{type(self).__name__} needs a RefineModule, not a {type(pl_module).__name__}"
            )

    def reads(self, batch: Any) -> bool:
        """Whether this phase is the one that says what ``batch`` does."""
        return isinstance(batch, Batch)

    def iterate(self, module: Any, batch: Any) -> None:
        """Make the updates of one batch that this phase reads, in ``training_step``."""
        module.refine(batch)

    def draws(self, settings: Settings) -> bool:
        """Whether it draws rollouts under these settings."""
        return settings.weights.needs_rollouts

    def updates_per_batch(self, refine_updates: int) -> int:
        """Optimizer steps of a batch that ReFINE makes ``refine_updates`` of."""
        return refine_updates

    def describe(self, module: Any, batch_size: int, settings: Settings) -> str:
        """What a batch of so many rows, over all processes, is made into; for people."""
        return describe_iteration(module, batch_size, settings)


class MidTraining(PhaseCallback):
    """Mid-training: one batch of raw text is one ReFINE iteration (method, section 3).

    That is what :meth:`RefineModule.training_step` does with a batch of sequences, so this phase
    changes nothing. It states what a configuration is for, names the phase on the progress bar, and
    reads no rows of tasks.
    """

    phase = "mid_training"


class PostTraining(PhaseCallback):
    """Post-training on prompts with answers (method, section 3).

    For each batch first the ReFINE update on the prompts alone, with its own mini-batches and
    optimizer steps, then one step on the answers: same weights, same optimizer, and the inner
    update is not undone.

    Args:
        mode: ``nested_refine`` as said; ``nested_sft`` with next-token training on the prompts
            instead of ReFINE; ``sft`` without an inner update.
        objective: what the step on the answers minimises.
    """

    phase = "post_training"

    def __init__(
        self,
        mode: Literal["sft", "nested_sft", "nested_refine"] = "nested_refine",
        objective: AnswerObjective = SUPERVISED,
    ) -> None:
        self.mode = mode
        self.objective: AnswerObjective = build_part(objective)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module the objective.

        Raises:
            ConfigError: as for every phase.
        """
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, RefineModule)
        pl_module.objective = self.objective

    def reads(self, batch: Any) -> bool:
        """Rows of tasks."""
        return isinstance(batch, TaskBatch)

    def draws(self, settings: Settings) -> bool:
        """Only nested ReFINE does."""
        return self.mode == "nested_refine" and settings.weights.needs_rollouts

    def updates_per_batch(self, refine_updates: int) -> int:
        """The inner ones and one on the answers."""
        return 1 if self.mode == "sft" else refine_updates + 1

    def describe(self, module: Any, batch_size: int, settings: Settings) -> str:
        """The inner updates, and the step on the answers."""
        outer = self.objective.describe()
        if self.mode == "sft":
            return f"{batch_size:,} rows = {outer}"
        inner = describe_iteration(module, batch_size, self._inner(settings))
        return f"{inner.replace(' sequences', ' prompts', 1)}; then {outer}"

    def iterate(self, module: Any, batch: Any) -> None:
        """The inner update on the prompts, then the step on the answers."""
        if self.mode != "sft":
            module.refine(batch.prompts, self._inner(module.settings))
        module.answer(batch)

    def _inner(self, settings: Settings) -> Settings:
        return settings if self.mode == "nested_refine" else without_rollouts(settings)


def without_rollouts(settings: Settings) -> Settings:
    """The step-matched baseline: the same with next-token training only."""
    weights = replace(settings.weights, policy_weight=0.0, kl_weight=0.0)
    return replace(settings, weights=weights)
