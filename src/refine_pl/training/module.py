"""RefineModule: owns the policy and the parts, runs iterations, logs.

What one update computes is in ``refine_step.py``, and how a batch becomes updates in
``update_loop.py``. Around it: ``run_phases.py`` says which updates a batch is made into,
``held_out.py`` what validation measures, ``run_log.py`` what is logged, and ``run_state.py`` what a
checkpoint keeps.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from refine_pl.advantages import AdvantageEstimator
from refine_pl.backbones import FastWeightLM
from refine_pl.evaluation.answering import Answering
from refine_pl.losses import ClippedPolicy
from refine_pl.objectives import AnswerObjective, SupervisedAnswers
from refine_pl.parts import (
    CLIPPED,
    ENTROPY,
    FORKED,
    GREEDY,
    GROUP_RELATIVE,
    NO_BACKBONE,
    SIMILARITY,
    build_part,
    choose_policy,
)
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch, Experience, RolloutPlan
from refine_pl.refine_step import LossWeights, RefineStep
from refine_pl.rewards import Reward
from refine_pl.rollouts import RolloutGenerator
from refine_pl.selectors import PositionSelector
from refine_pl.stopwatch import Stopwatch
from refine_pl.task_records import Answer, TaskBatch
from refine_pl.training.checks import (
    check_batch_size,
    check_data,
    check_is_read,
    check_sharding,
    check_small_lr,
    check_state,
    check_trainer,
)
from refine_pl.training.counters import (
    KEY,
    fit_reference,
    reset_counters,
    restore_counters,
    run_state,
)
from refine_pl.training.run_phases import describe_batch, training_phases
from refine_pl.training.sharding import class_name, gather, scatter, shard
from refine_pl.training.tally import FlatRewards, Tally, logged_means
from refine_pl.training.updater import Processes, Settings, UpdateLoop
from refine_pl.training.validation import tally_rows, tally_sequences, validation_sums


class RefineModule(LightningModule):
    """Trains a fast-weight model with ReFINE. What is logged: ``metrics.py``.

    Args:
        backbone: the model that is trained, the policy.
        pretrained: a folder or a name on the hub, to load the policy from instead.
        selector: where rollouts start.
        generator: how rollouts are drawn, and read again in the update.
        rewards: how good rollouts are: a dict of named rewards, summed by their weights.
        advantage: who is compared with whom.
        policy_loss: what the update does with the advantages.
        answering: how prompts are answered: in ``test``, ``predict`` and validation.
        optimizer: of the policy's parameters.
        num_segments: equal slices of a sequence; rollouts start at one position in each.
        rollouts_per_position: rollouts drawn from each position.
        rollout_length: tokens of a rollout.
        ntp_weight: of the next-token loss.
        policy_weight: of the policy loss; 0 (and no KL) is plain next-token training, step-matched.
        kl_weight: of the KL to the policy as it was when training started.
        minibatch_size: sequences per optimizer step, over all processes.
        steps: ``per_batch`` takes one optimizer step for the whole batch instead, as the published
            baselines did.
        microbatch_size: sequences per forward and backward pass, on each process.
        rollouts_per: draw for the whole batch under the old policy, or for each mini-batch anew.
        gradient_clip: largest gradient norm of an update.
        seed: names the random streams of positions and rollouts.
    """

    def __init__(
        self,
        backbone: FastWeightLM = NO_BACKBONE,
        pretrained: str | None = None,
        selector: PositionSelector = ENTROPY,
        generator: RolloutGenerator = FORKED,
        rewards: dict[str, Reward] = SIMILARITY,
        advantage: AdvantageEstimator = GROUP_RELATIVE,
        policy_loss: ClippedPolicy = CLIPPED,
        answering: Answering = GREEDY,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-6),
        num_segments: PositiveInt = 8,
        rollouts_per_position: PositiveInt = 1,
        rollout_length: PositiveInt = 5,
        ntp_weight: NonNegativeFloat = 1.0,
        policy_weight: NonNegativeFloat = 0.2,
        kl_weight: NonNegativeFloat = 0.0,
        minibatch_size: PositiveInt = 32,
        microbatch_size: PositiveInt = 1,
        steps: Literal["per_minibatch", "per_batch"] = "per_minibatch",
        rollouts_per: Literal["batch", "minibatch"] = "batch",
        gradient_clip: PositiveFloat = 1.0,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self._save_plain_hyperparameters()
        self.automatic_optimization = False
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a rank may rest
        self.policy = choose_policy(backbone, pretrained)
        self.reference: FastWeightLM | None = None
        self.refine_step = RefineStep(
            build_part(selector),
            build_part(generator),
            {name: build_part(reward) for name, reward in rewards.items()},
            build_part(advantage),
            build_part(policy_loss),
        ).requires_grad_(False)  # a part's own parameters, say a reward model's, are not trained
        self.answering = build_part(answering)
        self.objective: AnswerObjective = SupervisedAnswers()  # a phase may give another one
        self.make_optimizer = optimizer
        self.minibatch_size = minibatch_size
        self.microbatch_size = microbatch_size
        self.steps = steps
        self.rollouts_per = rollouts_per
        self.gradient_clip = gradient_clip
        self.seed = seed
        self.own_settings = Settings(
            RolloutPlan(num_segments, rollouts_per_position, rollout_length),
            LossWeights(ntp_weight, policy_weight, kl_weight),
        )
        self.settings = self.own_settings
        self.keep_reference = kl_weight != 0
        self.iteration = 0  # batches that are finished
        self.updates = 0  # optimizer steps, skipped ones included
        self.skipped_steps = 0
        self.tokens_seen = 0  # over all processes
        self._tally, self._stopwatch = Tally(), Stopwatch()  # of the iteration
        self._validation = Tally()
        self._flat_rewards = FlatRewards()

    def _save_plain_hyperparameters(self) -> None:
        """From the command line: the model's part of the config. From Python: the plain values."""
        parts = ["backbone", "selector", "generator", "rewards", "advantage", "policy_loss"]
        self.save_hyperparameters(ignore=[*parts, "answering", "optimizer"], logger=False)
        if "_instantiator" in self.hparams:
            self.save_hyperparameters(logger=False)

    # Start ---------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Check the trainer: the first hook of a run, before any data is prepared."""
        check_sharding(self.trainer)
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_trainer(self.trainer, self)
            # It asks for states from before the step, which a resume could not go on from.
            warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimiz")
        return []

    def setup(self, stage: str) -> None:
        """Check the data, give its tokenizer to the rewards, make the reference."""
        self.refine_step.reward.bind(self.tokenizer)
        check_data(self.trainer, self, stage)
        if stage == "fit" and self.keep_reference and self.reference is None:
            self.reference = copy.deepcopy(self.policy).requires_grad_(False)

    def configure_model(self) -> None:
        """Shard the policy and the reference, if the trainer's strategy is to."""
        if self.device_mesh is not None:  # only that of ModelParallelStrategy; none without trainer
            mesh = self.device_mesh["data_parallel"]
            shard(self.policy, mesh)
            if self.reference is not None:
                shard(self.reference, mesh)

    @property
    def tokenizer(self) -> Any:
        """The data module's tokenizer, or None."""
        return getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)

    def configure_optimizers(self) -> Optimizer:
        """The optimizer over the policy's trainable parameters."""
        optimizer = self.make_optimizer([p for p in self.policy.parameters() if p.requires_grad])
        self._groups = [
            {k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups
        ]
        check_small_lr(str(self.trainer.precision), min(group["lr"] for group in self._groups))
        return optimizer

    def on_fit_start(self) -> None:
        """Count from 0 unless resumed; say what is trained, and what an iteration is."""
        self.settings = self.own_settings
        if self.trainer.ckpt_path is None:
            reset_counters(self)
        size = sum(p.numel() for p in self.policy.parameters())
        kind = class_name(self.policy)
        self.print(f"{kind}, {size:,} parameters, {self.device}, {self.trainer.precision}")
        batch_size = getattr(getattr(self.trainer, "datamodule", None), "batch_size", None)
        if isinstance(batch_size, int):
            phases = training_phases(self)
            reader = phases[0] if len(phases) == 1 else None
            self.print(describe_batch(self, reader, batch_size, self.own_settings))

    def on_train_start(self) -> None:
        """The configuration decides over the optimizer's settings, not the checkpoint."""
        for group, own in zip(self._optimizer().param_groups, self._groups, strict=True):
            group.update(own)

    # Training ------------------------------------------------------------------------------------

    def training_step(self, batch: Batch | TaskBatch, batch_idx: int) -> None:
        """One iteration: what the phase makes of a batch; without one, sequences are refined."""
        self._check_batch_size(batch)
        self._apply_lr()
        phases = training_phases(self)
        if phases or isinstance(batch, TaskBatch):
            check_is_read(batch, phases).iterate(self, batch)
        else:
            self.refine(batch)
        self.iteration += 1
        self._report()

    def refine(self, batch: Batch, settings: Settings | None = None) -> None:
        """The ReFINE update on sequences, as a part of the iteration that is going on.

        Args:
            batch: sequences of this process.
            settings: the iteration's own if left out.
        """
        loop = self._loop()
        loop.refine(batch, settings or self.settings, self.iteration)
        self._count(loop)

    def answer(self, batch: TaskBatch) -> None:
        """One step on the answers of a batch, as a part of the iteration that is going on."""
        loop = self._loop()
        loop.answers(batch, self.objective, self.iteration)
        self._count(loop)

    def _loop(self) -> UpdateLoop:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        if not self._stopwatch.seconds:
            self._stopwatch = Stopwatch(self.device)
        processes = Processes.of(self.trainer)
        return UpdateLoop(
            self, optimizer, processes, self._tally, self._stopwatch, self._show_experience
        )

    def _count(self, loop: UpdateLoop) -> None:
        """Add what an update loop did to the counters."""
        self.updates += loop.updates
        self.skipped_steps += loop.skipped
        tokens = torch.tensor(loop.tokens, device=self.device)
        self.tokens_seen += int(self._sum_over_processes(tokens))

    def _show_experience(self, experience: Experience) -> None:
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "on_experience"):
                callback.on_experience(self.trainer, self, experience)

    def _check_batch_size(self, batch: Batch | TaskBatch) -> None:
        processes = self.trainer.world_size
        check_batch_size(
            len(batch) * processes, self.minibatch_size, self.microbatch_size, processes
        )

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        return torch.as_tensor(self.trainer.strategy.reduce(values, reduce_op="sum"))

    def _optimizer(self) -> Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        return optimizer

    def _apply_lr(self) -> None:
        for group, own in zip(self._optimizer().param_groups, self._groups, strict=True):
            group["lr"] = own["lr"] if self.settings.lr is None else self.settings.lr

    def _report(self) -> None:
        """Log what the iteration summed up."""
        tally, stopwatch = self._tally, self._stopwatch
        self._tally, self._stopwatch = Tally(), Stopwatch()
        means = tally.means(self.device, self._sum_over_processes)
        logged = logged_means(means, self.settings.weights)
        logged["optim/lr"] = self._optimizer().param_groups[0]["lr"]
        logged["optim/updates"] = self.updates
        logged["optim/skipped_steps"] = self.skipped_steps
        logged["run/tokens_seen"] = self.tokens_seen
        logged |= {f"time/{part}_s": seconds for part, seconds in stopwatch.seconds.items()}
        self.log_scalars(logged, self.log_is_due)
        self._flat_rewards.watch(means.get("advantage/zero_spread_groups", 0.0))

    def log_scalars(self, values: Mapping[str, float], due: bool = True) -> None:
        """Log under the number of finished iterations, the same values on every process.

        Args:
            values: by name.
            due: write them to the loggers; otherwise callbacks alone can read them.
        """
        # Lightning would write values of earlier iterations again when a phase stops logging them,
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

    def on_validation_epoch_start(self) -> None:
        """Start to sum anew."""
        self._validation = validation_sums(self)
        gather(self.policy)  # processes may have different numbers of batches

    def validation_step(
        self, batch: Batch | TaskBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Measure sequences; rows of tasks are answered and scored."""
        if isinstance(batch, TaskBatch):
            tally_rows(self._validation, self, batch, self.test_step(batch, batch_idx))
        else:
            tally_sequences(self._validation, self, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all tokens and all rollouts of all processes."""
        scatter(self.policy)
        means = self._validation.means(self.device, self._sum_over_processes)
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log_scalars(means)
        else:
            self.log_dict(means)  # `validate` shows and returns what is logged Lightning's way

    # Answering -----------------------------------------------------------------------------------

    def test_step(  # type: ignore[override]
        self, batch: TaskBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> list[Answer]:
        """Answer the prompts of a batch; a callback scores the answers and writes them."""
        generator = RowRandom(self.seed, 0, batch.prompts.rows, "answer")
        return self.answering.answer(self.policy, batch, self.tokenizer, generator)

    def predict_step(
        self, batch: TaskBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> list[Answer]:
        """As in ``test``."""
        return self.test_step(batch, batch_idx)

    # Checkpoints ---------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the counters, and what the model was made from."""
        checkpoint[KEY] = run_state(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the counters, and make the reference fit what this run needs."""
        restore_counters(self, checkpoint)
        state = checkpoint.get("state_dict")
        if state is not None:  # a sharded run has loaded its weights already
            checkpoint["state_dict"] = fit_reference(state, self.reference is not None)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in torch, but a checkpoint of another architecture is an error that says so.

        Raises:
            CheckpointError: naming the first keys that do not fit.
        """
        check_state(self.state_dict(), state_dict, class_name(self.policy), strict)
        return super().load_state_dict(state_dict, strict, assign)
