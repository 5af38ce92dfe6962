"""RefineModule: owns the policy and the parts, steps the optimizer, logs.

What one update computes is in ``refine_step.py``; here are the loops around it: a batch is cut
into mini-batches (one optimizer step each) and these into micro-batches (one backward pass each).
Batches and mini-batches are counted over all processes, micro-batches on each.
"""

from __future__ import annotations

import copy
import importlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from refine_pl.advantages import AdvantageEstimator
from refine_pl.backbones import FastWeightLM
from refine_pl.losses import ClippedPolicy, count_ntp_tokens
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch, Experience, RolloutPlan
from refine_pl.refine_step import Counts, LossWeights, RefineStep
from refine_pl.rewards import Reward
from refine_pl.rollouts import RolloutGenerator
from refine_pl.run_checks import (
    check_batch_size,
    check_data,
    check_small_lr,
    check_state,
    check_trainer,
)
from refine_pl.run_log import (
    VALIDATION_SUMS,
    FlatRewards,
    Tally,
    tally_experience,
    tally_validation,
)
from refine_pl.selectors import PositionSelector
from refine_pl.stopwatch import Stopwatch

COUNTERS = ("iteration", "updates", "skipped_steps", "tokens_seen")

# Parts that are left out. They are named, not made, so that no two modules share one.
ENTROPY: Any = {"class_path": "refine_pl.selectors.Entropy"}
FORKED: Any = {"class_path": "refine_pl.rollouts.Forked"}
SIMILARITY: Any = {"similarity": {"class_path": "refine_pl.rewards.EmbeddingSimilarity"}}
GROUP_RELATIVE: Any = {"class_path": "refine_pl.advantages.GroupRelative"}
CLIPPED: Any = {"class_path": "refine_pl.losses.ClippedPolicy"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a schedule may change from iteration to iteration."""

    plan: RolloutPlan
    weights: LossWeights
    lr: float | None = None  # None: the optimizer's own


class RefineModule(LightningModule):
    """Trains a fast-weight model with ReFINE. The logged names are in :mod:`refine_pl.run_log`.

    Args:
        backbone: the model that is trained, the policy.
        selector: where rollouts start.
        generator: how rollouts are drawn, and read again in the update.
        rewards: how good rollouts are: a dict of named rewards, summed by their weights.
        advantage: who is compared with whom.
        policy_loss: what the update does with the advantages.
        optimizer: of the policy's parameters.
        num_segments: equal slices of a sequence; rollouts start at one position in each.
        rollouts_per_position: rollouts drawn from each position.
        rollout_length: tokens of a rollout.
        ntp_weight: of the next-token loss.
        policy_weight: of the policy loss; 0 (and no KL) is plain next-token training, step-matched.
        kl_weight: of the KL to the policy as it was when training started.
        minibatch_size: sequences per optimizer step, over all processes.
        microbatch_size: sequences per forward and backward pass, on each process.
        rollouts_per: draw for the whole batch under the old policy, or for each mini-batch anew.
        gradient_clip: largest gradient norm of an update.
        seed: names the random streams of positions and rollouts.
    """

    def __init__(
        self,
        backbone: FastWeightLM,
        selector: PositionSelector = ENTROPY,
        generator: RolloutGenerator = FORKED,
        rewards: dict[str, Reward] = SIMILARITY,
        advantage: AdvantageEstimator = GROUP_RELATIVE,
        policy_loss: ClippedPolicy = CLIPPED,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-6),
        num_segments: PositiveInt = 8,
        rollouts_per_position: PositiveInt = 1,
        rollout_length: PositiveInt = 5,
        ntp_weight: NonNegativeFloat = 1.0,
        policy_weight: NonNegativeFloat = 0.2,
        kl_weight: NonNegativeFloat = 0.0,
        minibatch_size: PositiveInt = 32,
        microbatch_size: PositiveInt = 1,
        rollouts_per: Literal["batch", "minibatch"] = "batch",
        gradient_clip: PositiveFloat = 1.0,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self._save_plain_hyperparameters()
        self.automatic_optimization = False
        self.policy = backbone
        self.reference: FastWeightLM | None = None
        self.refine_step = RefineStep(
            _build(selector),
            _build(generator),
            {name: _build(reward) for name, reward in rewards.items()},
            _build(advantage),
            _build(policy_loss),
        ).requires_grad_(False)  # a part's own parameters, say a reward model's, are not trained
        self.make_optimizer = optimizer
        self.minibatch_size = minibatch_size
        self.microbatch_size = microbatch_size
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
        self._validation = Tally()
        self._flat_rewards = FlatRewards()

    def _save_plain_hyperparameters(self) -> None:
        """From the command line: the model's part of the config. From Python: the plain values."""
        parts = ["backbone", "selector", "generator", "rewards", "advantage", "policy_loss"]
        self.save_hyperparameters(ignore=[*parts, "optimizer"], logger=False)
        if "_instantiator" in self.hparams:
            self.save_hyperparameters(logger=False)

    # Start ---------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Check the trainer: the first hook of a run, before any data is prepared."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_trainer(self.trainer, self)
            # It asks for states from before the step, which a resume could not go on from.
            warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimiz")
        return []

    def setup(self, stage: str) -> None:
        """Check the data, give its tokenizer to the rewards, make the reference."""
        self.refine_step.reward.bind(self.tokenizer)
        if stage == "fit":
            check_data(self.trainer, self)
            if self.keep_reference and self.reference is None:
                self.reference = copy.deepcopy(self.policy).requires_grad_(False)

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
            for name in COUNTERS:
                setattr(self, name, 0)
        size = sum(p.numel() for p in self.policy.parameters())
        kind = type(self.policy).__name__
        self.print(f"{kind}, {size:,} parameters, {self.device}, {self.trainer.precision}")
        batch_size = getattr(getattr(self.trainer, "datamodule", None), "batch_size", None)
        if isinstance(batch_size, int):
            self.print(self.describe_iteration(batch_size, self.own_settings))

    def describe_iteration(self, batch_size: int, settings: Settings) -> str:
        """What a batch of ``batch_size`` sequences over all processes is made into."""
        updates = batch_size // self.minibatch_size
        text = f"{batch_size:,} sequences = {updates} update{'s' if updates > 1 else ''}"
        text += f" of {self.minibatch_size}"
        if not settings.weights.needs_rollouts:
            return f"{text}; no rollouts"
        plan = settings.plan
        length = getattr(getattr(self.trainer, "datamodule", None), "sequence_length", None)
        positions = plan.num_segments
        if isinstance(length, int):
            positions = self.refine_step.selector.count(length, plan)
        rollouts = batch_size * positions * plan.rollouts_per_position
        tokens = f"{plan.rollout_length} token{'s' if plan.rollout_length > 1 else ''}"
        return f"{text}; {rollouts:,} rollouts of {tokens}"

    def on_train_start(self) -> None:
        """The configuration decides over the optimizer's settings, not the checkpoint."""
        for group, own in zip(self._optimizer().param_groups, self._groups, strict=True):
            group.update(own)

    # Training ------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One iteration: rollouts under the policy as it is, then a step for each mini-batch."""
        processes = self.trainer.world_size
        batch_size = len(batch) * processes
        check_batch_size(batch_size, self.minibatch_size, self.microbatch_size, processes)
        self._apply_lr()
        tally, stopwatch = Tally(), Stopwatch(self.device)
        tally.add("tokens", batch.num_tokens.sum(), 1 / processes)  # the mean is the total
        minibatches = list(_cut(batch, self.minibatch_size // processes))
        if self.rollouts_per == "batch":
            drawn = [self._draw(minibatch, tally, stopwatch) for minibatch in minibatches]
            for micro_batches in drawn:
                self._update(micro_batches, tally, stopwatch)
        else:
            for minibatch in minibatches:
                self._update(self._draw(minibatch, tally, stopwatch), tally, stopwatch)
        self.iteration += 1
        self._report(tally, stopwatch)

    def _draw(
        self, minibatch: Batch, tally: Tally, stopwatch: Stopwatch
    ) -> Sequence[Experience | Batch]:
        """Rollouts for each micro-batch, or the bare micro-batches if no term needs them."""
        micro_batches = list(_cut(minibatch, self.microbatch_size))
        if not self.settings.weights.needs_rollouts:
            return micro_batches
        drawn = []
        for micro_batch in micro_batches:
            generator = RowRandom(self.seed, self.iteration, micro_batch.rows)
            experience = self.refine_step.draw(
                self.policy, micro_batch, self.settings.plan, generator, stopwatch
            )
            tally_experience(tally, experience, self.refine_step.advantage.group_by)
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if hasattr(callback, "on_experience"):
                    callback.on_experience(self.trainer, self, experience)
            drawn.append(_without_hidden(experience))
        return drawn

    def _update(
        self, micro_batches: Sequence[Experience | Batch], tally: Tally, stopwatch: Stopwatch
    ) -> None:
        """One optimizer step."""
        with stopwatch("update"):
            counts = self._count(micro_batches)
            for i, micro_batch in enumerate(micro_batches):
                with self._synchronised(i == len(micro_batches) - 1):
                    loss, sums = self.refine_step.loss(
                        self.policy, micro_batch, counts, self.settings.weights, self.reference
                    )
                    # Lightning's autocast reaches around the whole step, but the types of the
                    # backward pass were settled in the forward pass.
                    with torch.autocast(self.device.type, enabled=False):
                        self.manual_backward(loss)
                ntp_tokens, rollout_tokens = _local_counts(micro_batch)
                for name, total in sums.items():
                    tally.add(name, total, ntp_tokens if name == "ntp_loss" else rollout_tokens)
            self._step(tally)

    def _step(self, tally: Tally) -> None:
        """Clip and step; a gradient that is not finite is dropped, the same on every process."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.gradient_clip)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if bool(norm.isfinite()):
            tally.add("optim/grad_norm", norm, 1)
        else:
            self.skipped_steps += 1
            # Without gradients the step changes nothing. It is taken so that the trainer's count of
            # steps stays a multiple of the updates per batch, which checkpoints rely on.
            optimizer.zero_grad()
        optimizer.step()
        optimizer.zero_grad()
        self.updates += 1

    def _count(self, micro_batches: Sequence[Experience | Batch]) -> Counts:
        """What the sums of one update are divided by; gradients are averaged over processes."""
        local = torch.stack([torch.stack(_local_counts(m)) for m in micro_batches]).sum(0)
        total = self._sum_over_processes(local.double())
        ntp_tokens, rollout_tokens = (total.clamp(min=1) / self.trainer.world_size).tolist()
        return Counts(ntp_tokens, rollout_tokens)

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged between processes in the last backward pass of an update."""
        strategy = self.trainer.strategy
        if last or not isinstance(strategy, ParallelStrategy):
            return nullcontext()
        return strategy.block_backward_sync()

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        return torch.as_tensor(self.trainer.strategy.reduce(values, reduce_op="sum"))

    def _optimizer(self) -> Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        return optimizer

    def _apply_lr(self) -> None:
        for group, own in zip(self._optimizer().param_groups, self._groups, strict=True):
            group["lr"] = own["lr"] if self.settings.lr is None else self.settings.lr

    def _report(self, tally: Tally, stopwatch: Stopwatch) -> None:
        """Log what the iteration summed up."""
        means = tally.means(self.device, self._sum_over_processes)
        self.tokens_seen += round(means.pop("tokens"))
        weights = self.settings.weights
        logged = {"train/loss": weights.ntp_weight * means.get("ntp_loss", 0.0)}
        logged["train/loss"] += weights.policy_weight * means.get("policy_loss", 0.0)
        logged["train/loss"] += weights.kl_weight * means.get("kl", 0.0)
        for name, value in means.items():
            group = "train/" if name in ("ntp_loss", "policy_loss", "kl") else "policy/"
            logged[name if "/" in name else group + name] = value
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
        """Start to sum anew. Every process names all sums, even if it gets no batch."""
        self._validation = Tally(VALIDATION_SUMS)
        for name in self.refine_step.reward.parts():
            self._validation.add(f"val/reward_{name}", 0.0, 0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Next-token loss and accuracy, and rollouts from streams that are the same every time.

        The rollouts follow the module's own settings, whatever a schedule has changed.
        """
        for micro_batch in _cut(batch, self.microbatch_size):
            generator = RowRandom(self.seed, 0, micro_batch.rows, "validation")
            tally_validation(
                self._validation,
                self.policy,
                self.refine_step,
                micro_batch,
                self.own_settings.plan,
                generator,
            )

    def on_validation_epoch_end(self) -> None:
        """Log the means over all tokens and all rollouts of all processes."""
        means = self._validation.means(self.device, self._sum_over_processes)
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log_scalars(means)
        else:
            self.log_dict(means)  # `validate` shows and returns what is logged Lightning's way

    # Checkpoints ---------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the counters, as plain numbers."""
        checkpoint["refine_pl"] = {name: getattr(self, name) for name in COUNTERS}
        checkpoint["refine_pl"]["backbone"] = self.policy.config()  # for export

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the counters, and make the reference fit what this run needs."""
        for name, value in checkpoint.get("refine_pl", {}).items():
            if name in COUNTERS:
                setattr(self, name, int(value))
        state = checkpoint["state_dict"]
        has_reference = any(key.startswith("reference.") for key in state)
        if self.reference is None:
            checkpoint["state_dict"] = {
                k: v for k, v in state.items() if not k.startswith("reference.")
            }
        elif not has_reference:  # the KL was turned on by this run: its reference is the checkpoint
            state |= {
                k.replace("policy.", "reference.", 1): v.clone()
                for k, v in state.items()
                if k.startswith("policy.")
            }

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in torch, but a checkpoint of another architecture is an error that says so.

        Raises:
            CheckpointError: naming the first keys that do not fit.
        """
        check_state(self.state_dict(), state_dict, type(self.policy).__name__, strict)
        return super().load_state_dict(state_dict, strict, assign)


def _build(part: Any) -> Any:
    """A part that was left out, made from the name that stands for it."""
    if not isinstance(part, dict):
        return part
    module, name = part["class_path"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)()


def _cut(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(batch), size):
        yield batch.narrow(start, start + size)


def _local_counts(micro_batch: Experience | Batch) -> tuple[Tensor, Tensor]:
    """Next-token targets and rollout tokens of a micro-batch, on this process."""
    if isinstance(micro_batch, Batch):
        return count_ntp_tokens(micro_batch.num_tokens), torch.zeros_like(micro_batch.num_tokens[0])
    rollouts = micro_batch.rollouts
    tokens = rollouts.valid.sum() * math.prod(rollouts.tokens.shape[2:])
    return count_ntp_tokens(micro_batch.batch.num_tokens), tokens


def _without_hidden(experience: Experience) -> Experience:
    """The update does not need the rewards' inputs, and all of a batch's would wait for it."""
    none = experience.rewards.new_empty(0)
    rollouts = replace(experience.rollouts, hidden=none, target_hidden=none)
    return replace(experience, rollouts=rollouts)
