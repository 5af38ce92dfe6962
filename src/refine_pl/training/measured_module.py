"""What a module measures and logs, beside training: validation, answers, scalars."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from refine_pl.backbones import FastWeightLM
from refine_pl.errors import CheckpointError, ConfigError
from refine_pl.evaluation.answering import Answering
from refine_pl.faults import NotFiniteError
from refine_pl.numbers import check_finite_weights, describe_not_finite, not_finite
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch
from refine_pl.refine_step import RefineStep
from refine_pl.selectors import PositionSelector
from refine_pl.task_records import Answer, TaskBatch
from refine_pl.tokenizers import Tokenizer
from refine_pl.training.checks import check_plan, check_state, check_teaches
from refine_pl.training.counters import Counters
from refine_pl.training.data_view import DataView
from refine_pl.training.phases import Phase
from refine_pl.training.processes import processes_of
from refine_pl.training.row_values import all_records
from refine_pl.training.run_folder import HeldOut
from refine_pl.training.settings import PartSettings, Settings
from refine_pl.training.sharding import class_name, gather, scatter
from refine_pl.training.sizes import Sizes
from refine_pl.training.stopping import Border, saving
from refine_pl.training.validation import Validation
from refine_pl.training.validation_plan import ValidationPlan
from refine_pl.training.yardstick import copy_weights


class MeasuredModule(LightningModule):
    """A policy with the parts that draw and judge rollouts; :class:`RefineModule` trains it.

    Attributes:
        yardstick: the policy as it was when the stage began; None if validation does without.
        stage: number of that stage in the schedule; None before it is known.
        held_out: what the last validation measured of each sequence, of all processes.
    """

    policy: FastWeightLM
    refine_step: RefineStep
    answering: Answering
    own_settings: Settings
    part_settings: PartSettings
    sizes: Sizes
    seed: int
    counters: Counters
    border: Border
    phase: Phase
    validation: ValidationPlan
    yardstick: FastWeightLM | None
    stage: int | None
    held_out: list[HeldOut]
    _validation: Validation | None = None

    @property
    def iteration(self) -> int:
        """Batches that are finished."""
        return self.counters.iteration

    @property
    def tokens_seen(self) -> int:
        """Sequence tokens that updates have read, over all processes."""
        return self.counters.tokens_seen

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The data module's tokenizer, if there is one."""
        return self._data.tokenizer

    def text(self, tokens: list[int]) -> str:
        """The text of tokens, or their numbers if there is no tokenizer."""
        return self._data.text(tokens)

    @property
    def _data(self) -> DataView:
        return DataView(getattr(self.trainer, "datamodule", None))

    # Faults --------------------------------------------------------------------------------------

    def stopping(self) -> AbstractContextManager[None]:
        """Around what may fail in ``fit``: the state is saved, and the error names where."""
        return saving(self.trainer, self.border, lambda: self.counters.updates)

    def check_weights(self) -> None:
        """Refuse to run with weights that are NaN or infinite, whatever they come from.

        Raises:
            CheckpointError: naming the tensor and the file; another process may hold its part.
        """
        loaded = self.trainer.ckpt_path or self.hparams.get("pretrained")
        where = str(loaded or "model.backbone")
        failed = None
        try:
            check_finite_weights(self.policy.named_parameters(), where, "an earlier checkpoint")
        except CheckpointError as error:
            failed = error
        if self.trainer.state.fn != TrainerFn.FITTING:
            # A process without a batch does not come here, and the others must not wait for it.
            if failed is not None:
                raise failed
            return
        number = torch.tensor(float(failed is not None), device=self.device)
        if float(processes_of(self.trainer).total(number)):
            raise failed or CheckpointError(
                "the weights of another process are not finite", where=where
            )

    def on_validation_start(self) -> None:
        """Check the weights, unless training has done it."""
        if self.trainer.state.fn != TrainerFn.FITTING:
            self.check_weights()

    def on_test_start(self) -> None:
        """Check the weights."""
        self.check_weights()

    def on_predict_start(self) -> None:
        """Check the weights."""
        self.check_weights()

    def check_saved_weights(self) -> None:
        """Refuse to save weights that are NaN or infinite: the checkpoints of before are better.

        Raises:
            NotFiniteError: naming the last good checkpoint.
        """
        found = not_finite(self.policy.named_parameters())
        if self._trainer is None:
            number = float(len(found))
        else:
            local = torch.tensor(float(len(found)), device=self.device)
            number = float(processes_of(self.trainer).total(local))
        if number:
            what = describe_not_finite(found) if found else "those of another process"
            with self.stopping():
                raise NotFiniteError(f"the model's weights are not finite: {what}")

    def check_settings(self, settings: Settings, where: str, source: str | None = None) -> None:
        """Refuse settings that the data's sequences do not fit; see :meth:`check_rollouts`.

        Args:
            settings: of a stage, or the module's own.
            where: they came from.
            source: of the data module's, where it has several.

        Raises:
            ConfigError: naming ``where``.
        """
        if self.phase.draws(settings):
            self.check_rollouts(settings, where, self._data.sequence_length(source))

    def check_rollouts(self, settings: Settings, where: str, length: int | None) -> None:
        """Refuse settings that sequences are too short for, or that nothing can be learned from.

        Args:
            settings: what is checked.
            where: they came from.
            length: of the sequences, tokens; None if they differ.

        Raises:
            ConfigError: naming ``where``.
        """
        step, plan = self.refine_step, settings.plan
        selector, positions = step.selector, plan.num_segments
        with self.part_settings.given(settings.parts):
            if length is not None and isinstance(selector, PositionSelector):
                check_plan(selector, length, plan, where)
                positions = selector.count(length, plan)
            elif not selector.one_per_segment:
                positions = max(positions, 2)  # as many as a row has room for
            if settings.weights.policy_weight:
                check_teaches(step.advantage, plan, positions, where)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in torch, but a checkpoint of another architecture is an error that says so.

        Raises:
            CheckpointError: naming the first keys that do not fit.
        """
        check_state(self.state_dict(), state_dict, class_name(self.policy), strict)
        learned = {f"policy.{name}" for name, _ in self.policy.named_parameters()}
        trainer = self._trainer
        check_finite_weights(
            ((n, v) for n, v in state_dict.items() if n in learned and isinstance(v, Tensor)),
            str(getattr(trainer, "ckpt_path", None) or "the checkpoint"),
            "an earlier checkpoint",
        )
        return super().load_state_dict(state_dict, strict, assign)

    # Log -----------------------------------------------------------------------------------------

    def log_scalars(self, values: Mapping[str, float], due: bool = True) -> None:
        """Log under the number of finished iterations, the same values on every process.

        Args:
            values: by name.
            due: write them to the loggers; otherwise callbacks alone can read them.
        """
        # Lightning would write values of earlier iterations again when a stage stops logging them,
        # and count batches of this process's lifetime.
        for logger in self.loggers if due else []:
            logger.log_metrics(dict(values), step=self.iteration)
        self.log_dict({name: float(value) for name, value in values.items()}, logger=False)

    @property
    def log_is_due(self) -> bool:
        """Whether the iteration that has just finished is one that the trainer logs."""
        interval = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return interval > 0 and self.iteration % interval == 0

    # Validation ----------------------------------------------------------------------------------

    def begin_stage(self, stage: int) -> None:
        """Freeze a copy of the policy as it is now, unless it was done when this stage began.

        Args:
            stage: its number in the schedule, from 0.
        """
        if self.yardstick is not None and stage != self.stage:
            copy_weights(self.policy, self.yardstick)
        self.stage = stage

    def on_validation_epoch_start(self) -> None:
        """Start with empty sums, under the model's own settings."""
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        if self.stage is None and (fitting or self.trainer.ckpt_path is None):
            self.begin_stage(0)
        with self.part_settings.given(self.part_settings.own()):
            self._validation = Validation(
                self.policy,
                self.refine_step,
                self.validation,
                self.sizes.microbatch,
                self.yardstick,
                self._data.text,
            )
        if fitting:
            self.border.remember(self.trainer, self.counters.updates)
        for model in self._measured():  # processes may have different numbers of batches
            gather(model)

    def _measured(self) -> list[FastWeightLM]:
        return [model for model in (self.policy, self.yardstick) if model is not None]

    def validation_step(
        self, batch: Batch | TaskBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Measure sequences; rows of tasks are answered and scored."""
        assert self._validation is not None
        with self.part_settings.given(self.part_settings.own()):
            if isinstance(batch, TaskBatch):
                self._validation.add_rows(batch, self.test_step(batch, batch_idx))
            else:
                self._validation.add_sequences(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all tokens and all rollouts of all processes."""
        assert self._validation is not None
        for model in self._measured():
            scatter(model)
        with self.stopping():
            means = self._validation.means(self.device, processes_of(self.trainer).total)
        self.held_out = all_records(self._validation.rows, self.trainer.world_size)
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log_scalars(means)
        else:
            self.log_dict(means)  # `validate` shows and returns what is logged Lightning's way

    # Answering -----------------------------------------------------------------------------------

    def test_step(  # type: ignore[override]
        self, batch: TaskBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> list[Answer]:
        """Answer the prompts of a batch; a callback scores the answers and writes them."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise ConfigError("answering needs the data's tokenizer", where="data")
        generator = RowRandom(self.seed, 0, batch.prompts.rows, "answer")
        return self.answering.answer(self.policy, batch, tokenizer, generator)

    def predict_step(
        self, batch: TaskBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> list[Answer]:
        """As in ``test``."""
        return self.test_step(batch, batch_idx)
