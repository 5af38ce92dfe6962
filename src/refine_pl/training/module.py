"""RefineModule: the Lightning hooks around the engine, and the log.

What one update computes is in ``refine_step.py``, how a batch becomes updates in ``updater.py``,
and which updates a batch is made into in ``phases.py``. Around them: ``checks.py`` before a run,
``validation.py`` for what is measured, ``tally.py`` and ``metric_table.py`` for what is logged.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from refine_pl.adapters import (
    Adapter,
    Attached,
    attach,
    frozen_copy,
    keep_frozen_in_16_bits,
)
from refine_pl.advantages import AdvantageEstimator
from refine_pl.backbones import FastWeightLM
from refine_pl.evaluation.answering import Answering
from refine_pl.losses import PolicyLoss
from refine_pl.parts import (
    ADAMW,
    CLIPPED,
    ENTROPY,
    FORKED,
    GREEDY,
    GROUP_RELATIVE,
    NO_ADAPTER,
    NO_BACKBONE,
    SIMILARITY,
    build_part,
    choose_policy,
    maker,
)
from refine_pl.records import Batch, Experience, RolloutPlan
from refine_pl.refine_step import LossWeights, RefineStep
from refine_pl.rewards import Reward
from refine_pl.rollouts import RolloutGenerator
from refine_pl.selectors import PositionSelector
from refine_pl.stopwatch import Stopwatch
from refine_pl.task_records import TaskBatch
from refine_pl.training.callback_checks import check_callbacks
from refine_pl.training.checks import (
    check_batch_size,
    check_precision,
    check_reward_names,
    check_small_lr,
    check_update,
    check_vocabulary,
    long_text_note,
    special_tokens_note,
)
from refine_pl.training.counters import Counters
from refine_pl.training.flat_rewards import FlatRewards
from refine_pl.training.learning_rate import LearningRate
from refine_pl.training.phases import Phase, find_phase
from refine_pl.training.processes import processes_of
from refine_pl.training.resuming import begin_next_epoch
from refine_pl.training.saved_module import SavedModule
from refine_pl.training.settings import PartSettings, Settings
from refine_pl.training.sharding import class_name, shard
from refine_pl.training.sizes import Processes, Sizes, Stepper
from refine_pl.training.stopping import Border
from refine_pl.training.tally import FAULTS, Tally, logged_means
from refine_pl.training.trainer_checks import (
    check_checkpoints,
    check_log_folders,
    check_manual_optimization,
    check_sharding,
)
from refine_pl.training.updater import Updater
from refine_pl.training.validation_plan import PLAN, ValidationPlan


class RefineModule(SavedModule):
    """Trains a fast-weight model with ReFINE. What is logged: ``metric_table.py``.

    Args:
        backbone: the model that is trained, the policy.
        pretrained: a folder or a name on the hub, to load the policy from instead.
        adapter: ``peft.LoraConfig``: train a low-rank adapter, and leave the policy's own weights
            as they are; ``target_modules`` also takes kinds of layers.
        selector: where rollouts start.
        generator: how rollouts are drawn, and read again in the update.
        rewards: how good rollouts are: a dict of named rewards, summed by their weights.
        advantage: who is compared with whom.
        policy_loss: what the update does with the advantages.
        answering: how prompts are answered: in ``test``, ``predict`` and validation.
        validation: which rollouts validation draws, and how it judges them.
        optimizer: of the policy's parameters.
        lr_scheduler: of the learning rate, counted in iterations; any class of
            ``torch.optim.lr_scheduler`` that needs no metric.
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
        update: ``joined``: drawing and update share one pass over the sequences, where the weights
            do not change in between; ``two_pass``: they never do; ``auto`` joins if the generator
            can. The results are the same.
        draw_batch: sequences that rollouts are drawn for at once, on each process, where drawing is
            a pass of its own; ``auto``: four micro-batches, two with activation checkpointing.
        gradient_clip: largest gradient norm of an update.
        max_skipped_steps: a step whose gradient is not finite is skipped; so many in a row end the
            run.
        seed: names the random streams of positions and rollouts.
    """

    def __init__(
        self,
        backbone: FastWeightLM = NO_BACKBONE,
        pretrained: str | None = None,
        adapter: Adapter = NO_ADAPTER,
        selector: PositionSelector = ENTROPY,
        generator: RolloutGenerator = FORKED,
        rewards: dict[str, Reward] = SIMILARITY,
        advantage: AdvantageEstimator = GROUP_RELATIVE,
        policy_loss: PolicyLoss = CLIPPED,
        answering: Answering = GREEDY,
        validation: ValidationPlan = PLAN,
        optimizer: OptimizerCallable = ADAMW,
        lr_scheduler: LRSchedulerCallable | None = None,
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
        update: Literal["auto", "joined", "two_pass"] = "auto",
        draw_batch: Literal["auto"] | PositiveInt = "auto",
        gradient_clip: PositiveFloat = 1.0,
        max_skipped_steps: PositiveInt = 20,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.save_plain_hyperparameters()
        self.automatic_optimization = False
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a rank may rest
        self.policy = choose_policy(backbone, pretrained)
        self.adapter: Attached | None = None if adapter is None else attach(self.policy, adapter)
        self.reference: FastWeightLM | None = None
        self.yardstick: FastWeightLM | None = None
        self.stage: int | None = None
        self.held_out = []
        # A part's own parameters, say a reward model's, are not trained.
        self.refine_step = RefineStep(
            selector, generator, rewards, advantage, policy_loss
        ).requires_grad_(False)
        self.answering = build_part(answering)
        self.validation = replace(validation, selector=build_part(validation.selector))
        self.make_optimizer = maker(optimizer)
        self.make_lr_scheduler = lr_scheduler
        self.minibatch_size = minibatch_size
        per_step = None if steps == "per_batch" else minibatch_size
        self.sizes = Sizes(per_step, microbatch_size, rollouts_per, update, draw_batch)
        self.gradient_clip = gradient_clip
        self.max_skipped_steps = max_skipped_steps
        self.seed = seed
        self.own_settings = Settings(
            RolloutPlan(num_segments, rollouts_per_position, rollout_length),
            LossWeights(ntp_weight, policy_weight, kl_weight),
        )
        self.settings = self.own_settings  # of this iteration; a schedule changes them
        self.keep_reference = kl_weight != 0
        self.phase = Phase()
        self.part_settings = self._part_settings()
        self.counters = Counters()
        self._updater: Updater | None = None
        self._flat_rewards = FlatRewards()
        self.border = Border()

    def _part_settings(self) -> PartSettings:
        """What a schedule may change of the parts, under the names that they are configured by."""
        step = self.refine_step
        return PartSettings(
            {
                "selector": step.selector,
                "generator": step.generator,
                "rewards": dict(zip(step.reward.names, step.reward.rewards, strict=True)),
                "advantage": step.advantage,
                "policy_loss": step.policy_loss,
                "answering": self.answering,
                "phase": vars(self.phase),
            }
        )

    # Start ---------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Check the trainer: the first hook of a run, before any data is prepared."""
        check_sharding(self.trainer, self.adapter is not None)
        check_log_folders(self.trainer)
        self._check_vocabulary()
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.phase = find_phase(self.trainer)
            self.part_settings = self._part_settings()
            check_reward_names(self.refine_step.reward.names)
            check_update(self.sizes, self.refine_step.generator, self.trainer.strategy.root_device)
            check_manual_optimization(self.trainer)
            own = type(self) is RefineModule
            check_callbacks(self.trainer, own, self.refine_step.reward.names)
            check_precision(str(self.trainer.precision))
            if self._data.batch_size is not None:  # others know it only when they are set up
                self._check_batch_size(self._data.batch_size)
            # It asks for states from before the step, which a resume could not go on from.
            warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimiz")
        return []

    def setup(self, stage: str) -> None:
        """Check the data, give its tokenizer to the rewards, make the frozen copies."""
        self.refine_step.reward.bind(self.tokenizer)
        self._check_vocabulary()  # of data that know it only now
        data, config = self._data, self.policy.config()
        label = getattr(data.tokenizer, "label", type(data.tokenizer).__name__)
        for note in (
            special_tokens_note(label, data.special_token_ids, config),
            long_text_note(class_name(self.policy), config, data.text_lengths()),
        ):
            if note is not None:
                self.print(note)
        if stage in ("fit", "validate") and self.validation.yardstick and self.yardstick is None:
            self.yardstick = frozen_copy(self.policy)
        if stage != "fit":
            return
        if data.batch_size is not None:
            self._check_batch_size(data.batch_size)
            check_checkpoints(self.trainer, self.phase.updates(self.sizes, data.batch_size))
        self.check_settings(self.own_settings, "model.num_segments")
        if self.keep_reference and self.reference is None:
            self.reference = frozen_copy(self.policy)

    def _check_vocabulary(self) -> None:
        """Before a corpus is tokenized, which takes long."""
        loaded = self.hparams.get("pretrained") is not None
        check_vocabulary(self._data.vocab_size, self.policy.vocab_size, loaded)

    def _check_batch_size(self, batch_size: int) -> None:
        """Of a batch over all processes."""
        processes = self.trainer.world_size
        check_batch_size(batch_size, self.minibatch_size, self.sizes.microbatch, processes)

    def configure_model(self) -> None:
        """Shard the policy and its frozen copies, if the trainer's strategy is to.

        A frozen base that can be loaded again is kept in the precision that it is read in.
        """
        loaded = self.adapter is not None and self.adapter.base is not None
        if loaded and self._trainer is not None and self._trainer.precision == "bf16-mixed":
            keep_frozen_in_16_bits(self.policy)
        if self.device_mesh is not None:  # only that of ModelParallelStrategy; none without trainer
            mesh = self.device_mesh["data_parallel"]
            shard(self.policy, mesh)
            for frozen in (self.reference, self.yardstick):
                if frozen is not None:
                    shard(frozen, mesh)

    def configure_optimizers(self) -> Any:
        """The optimizer over the policy's trainable parameters, and the schedule of its rate."""
        optimizer = self.make_optimizer([p for p in self.policy.parameters() if p.requires_grad])
        self.resume_optimizer(optimizer)
        self._rate = LearningRate(optimizer, self.make_lr_scheduler)
        check_small_lr(str(self.trainer.precision), self._rate.smallest)
        scheduler = self._rate.scheduler
        return optimizer if scheduler is None else ([optimizer], [scheduler])

    def on_fit_start(self) -> None:
        """Count from 0 unless resumed; say what is trained, and what an iteration is."""
        self.settings = self.own_settings
        self.part_settings.remember()
        self._flat_rewards = FlatRewards()
        if self.trainer.ckpt_path is None:
            self.counters, self.stage = Counters(), None
        size = sum(p.numel() for p in self.policy.parameters())
        kind = class_name(self.policy)
        self.print(f"{kind}, {size:,} parameters, {self.device}, {self.trainer.precision}")
        if self.adapter is not None:
            self.print(self.adapter.describe(self.policy))
        data = self._data
        if data.batch_size is not None and data.sources is None:
            self.print(self.describe(self.own_settings, data.batch_size))

    def describe(self, settings: Settings, batch_size: int, batch: Any = None) -> str:
        """What is made of ``batch_size`` rows, over all processes; for people."""
        positions: int | None = settings.plan.num_segments
        length = self._data.sequence_length()
        if self._data.is_packed(batch):
            positions = None
        elif length is not None:
            positions = self.refine_step.selector.count(length, settings.plan)
        return self.phase.describe(batch, batch_size, self.sizes, settings, positions)

    def on_train_start(self) -> None:
        """The configuration decides over the optimizer's settings, not the checkpoint."""
        self._rate.restore(self._optimizer())
        begin_next_epoch(self.trainer)
        self.check_weights()
        if self.stage is None:  # no schedule has said so
            self.begin_stage(0)
        self.border.remember(self.trainer, self.counters.updates)
        stepper = self.optimizers()
        assert not isinstance(stepper, list)
        self._updater = self.make_updater(
            stepper, processes_of(self.trainer), self._show_experience
        )
        self._updater.counters = self.counters

    def make_updater(
        self,
        optimizer: Stepper,
        processes: Processes | None = None,
        observe: Callable[[Experience], None] | None = None,
        reference: FastWeightLM | None = None,
    ) -> Updater:
        """The engine over this module's policy and parts.

        Args:
            optimizer: over the policy's parameters.
            processes: that share the batches; this one alone if left out.
            observe: is shown every experience.
            reference: that a KL term compares with; the module's own if left out.
        """
        return Updater(
            self.policy,
            self.refine_step,
            optimizer,
            self.sizes,
            seed=self.seed,
            gradient_clip=self.gradient_clip,
            max_skipped_steps=self.max_skipped_steps,
            reference=reference or self.reference,
            backward=self.manual_backward,
            # The trainer's autocast: hooks of callbacks run outside of it.
            autocast=self.trainer.precision_plugin.forward_context,
            processes=processes,
            observe=observe,
        )

    def _optimizer(self) -> Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        return optimizer

    # Training ------------------------------------------------------------------------------------

    def training_step(self, batch: Batch | TaskBatch, batch_idx: int) -> None:
        """One iteration: what the phase makes of a batch."""
        assert self._updater is not None
        self._check_batch_size(len(batch) * self.trainer.world_size)
        self._rate.apply(self._optimizer(), self.settings.lr)
        with self.stopping(), self.part_settings.given(self.settings.parts):
            self.phase.iterate(self._updater, batch, self.settings)
        self.counters.iteration += 1
        self._report(self._updater)
        self._rate.advance()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Remember that nothing is half done."""
        self.border.remember(self.trainer, self.counters.updates)

    def _show_experience(self, experience: Experience) -> None:
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "on_experience"):
                callback.on_experience(self.trainer, self, experience)

    def _report(self, updater: Updater) -> None:
        """Log what the iteration summed up."""
        means = updater.tally.means(self.device, updater.processes.total)
        faults = {n: means.pop(n) for n in list(means) if n.startswith(FAULTS)}
        self.counters.count_reward_faults({n.removeprefix(FAULTS): v for n, v in faults.items()})
        logged = logged_means(means, self.settings.weights)
        logged |= self.counters.scalars()
        logged |= faults
        logged["optim/lr"] = self._optimizer().param_groups[0]["lr"]
        logged |= {f"setting/{path}": value for path, value in self.settings.parts.items()}
        logged |= {f"time/{part}_s": s for part, s in updater.stopwatch.seconds.items()}
        updater.tally, updater.stopwatch = Tally(), Stopwatch(self.device)
        self.log_scalars(logged, self.log_is_due)
        if self.trainer.is_global_zero:
            self._flat_rewards.watch(means.get("advantage/zero_spread_groups", 0.0))
