"""The phases of training: what one batch is made into."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from refine_pl.errors import ConfigError
from refine_pl.objectives import AnswerObjective
from refine_pl.parts import SUPERVISED, build_part
from refine_pl.records import Batch, Packs
from refine_pl.task_records import TaskBatch
from refine_pl.tokenizers import Tokenizer
from refine_pl.training.data_view import DataView
from refine_pl.training.settings import Settings
from refine_pl.training.sizes import Sizes
from refine_pl.training.updater import Updater


class Phase(Callback):
    """Mid-training: one batch of raw text is one ReFINE update (paper, section 3).

    A run without a phase is in this one. The other phases are its subclasses. A trainer has one
    phase at most.

    Attributes:
        name: shown on the progress bar where no schedule names its stages.
        trains: whether the phase says what a batch of ``fit`` is made into.
    """

    name: ClassVar[str] = "training"
    trains: ClassVar[bool] = True

    def iterate(self, updater: Updater, batch: Any, settings: Settings) -> None:
        """Make the updates of one batch, in ``training_step``.

        Raises:
            ConfigError: this phase does not read such batches.
        """
        if not isinstance(batch, Batch | Packs):
            raise ConfigError(
                "the data are rows with prompts and answers, and no phase is given",
                where="phase",
                allowed="refine_pl.training.PostTraining for such rows",
                way_out="give that phase, or text: refine_pl.data.TextData",
            )
        updater.refine(batch, settings)

    def draws(self, settings: Settings) -> bool:
        """Whether it draws rollouts under these settings."""
        return settings.weights.needs_rollouts

    def updates(self, sizes: Sizes, batch_size: int) -> int | None:
        """Optimizer steps of ``batch_size`` rows, over all processes; None: batches differ."""
        return sizes.updates(batch_size)

    def describe(
        self, batch: Any, batch_size: int, sizes: Sizes, settings: Settings, positions: int | None
    ) -> str:
        """What a batch is made into, for people.

        Args:
            batch: one that this phase reads, or None before the first.
            batch_size: its rows, over all processes.
            sizes: how it is cut.
            settings: of the iteration.
            positions: where rollouts start, in each sequence; None: rows are packs of sequences.
        """
        return describe_refine(batch_size, sizes, settings, positions)


class PostTraining(Phase):
    """Post-training on prompts with answers (paper, section 3).

    For each batch first the ReFINE update on the prompts alone, with its own mini-batches and
    optimizer steps, then one step on the answers: same weights, same optimizer, and the inner
    update is not undone. Batches of text, which data of several stages may bring too, are
    mid-training.

    Args:
        mode: ``nested_refine`` does both; ``nested_sft`` has next-token training on the prompts
            instead of ReFINE; ``sft`` has no inner update.
        objective: what the step on the answers minimises.
    """

    name = "post_training"

    def __init__(
        self,
        mode: Literal["sft", "nested_sft", "nested_refine"] = "nested_refine",
        objective: AnswerObjective = SUPERVISED,
    ) -> None:
        self.mode = mode
        self.objective: AnswerObjective = build_part(objective)
        self._tokenizer: Tokenizer | None = None
        self._reads_text = False  # whether the data have stages with text

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the data's tokenizer, for objectives that read answers."""
        data = DataView(getattr(trainer, "datamodule", None))
        self._tokenizer, self._reads_text = data.tokenizer, data.sources is not None

    def iterate(self, updater: Updater, batch: Any, settings: Settings) -> None:
        """The inner update on the prompts, then the step on the answers.

        Raises:
            ConfigError: the data are text only.
        """
        if isinstance(batch, TaskBatch):
            if self.mode != "sft":
                updater.refine(batch.prompts, self._inner(settings))
            updater.answer(batch, self.objective, self._tokenizer)
            return
        if not self._reads_text:
            raise ConfigError(
                "the data are sequences of text, and the phase is PostTraining",
                where="phase",
                allowed="rows with prompts and answers: refine_pl.data.TaskData",
                way_out="leave the phase out: text is for mid-training",
            )
        super().iterate(updater, batch, settings)

    def draws(self, settings: Settings) -> bool:
        """Nested ReFINE does, and so does mid-training in stages of text."""
        nested = self.mode == "nested_refine" or self._reads_text
        return nested and settings.weights.needs_rollouts

    def updates(self, sizes: Sizes, batch_size: int) -> int | None:
        """The inner ones and one on the answers."""
        if self._reads_text:
            return None
        return 1 if self.mode == "sft" else sizes.updates(batch_size) + 1

    def describe(
        self, batch: Any, batch_size: int, sizes: Sizes, settings: Settings, positions: int | None
    ) -> str:
        """The inner updates, and the step on the answers."""
        if isinstance(batch, Batch | Packs):
            return super().describe(batch, batch_size, sizes, settings, positions)
        outer = self.objective.describe()
        if self.mode == "sft":
            return f"{batch_size:,} rows = {outer}"
        inner = describe_refine(batch_size, sizes, self._inner(settings), positions, "prompts")
        return f"{inner}; then {outer}"

    def _inner(self, settings: Settings) -> Settings:
        return settings if self.mode == "nested_refine" else settings.without_rollouts()


def describe_refine(
    batch_size: int,
    sizes: Sizes,
    settings: Settings,
    positions: int | None,
    rows: str = "sequences",
) -> str:
    """What ReFINE makes of a batch of ``batch_size`` rows over all processes, for people."""
    updates = sizes.updates(batch_size)
    rows = "packs" if positions is None else rows
    text = (
        f"{batch_size:,} {rows} = {updates} update{'s' if updates > 1 else ''} "
        f"of {sizes.minibatch or batch_size}"
    )
    if not settings.weights.needs_rollouts:
        return f"{text}; no rollouts"
    plan, number = settings.plan, "rollouts in each document,"
    if positions is not None:
        number = f"{batch_size * positions * plan.rollouts_per_position:,} rollouts"
    return (
        f"{text}; {number} of {plan.rollout_length} token{'s' if plan.rollout_length > 1 else ''}"
    )


def find_phase(trainer: Trainer) -> Phase:
    """The phase that says what a batch of training is made into; mid-training if none is given.

    Raises:
        ConfigError: there are several.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    found = [c for c in callbacks if isinstance(c, Phase)]
    if len(found) > 1:
        names = " and ".join(type(phase).__name__ for phase in found)
        raise ConfigError(
            f"the run has {len(found)} phases: {names}",
            where="phase",
            allowed="one; PostTraining does mid-training on batches of text",
        )
    return found[0] if found and found[0].trains else Phase()
