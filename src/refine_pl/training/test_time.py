"""Test-time training: the ReFINE update on test prompts before they are answered."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from refine_pl.adapters import frozen_copy
from refine_pl.backbones import FastWeightLM
from refine_pl.errors import ConfigError
from refine_pl.task_records import TaskBatch
from refine_pl.training.checks import check_small_lr
from refine_pl.training.module import RefineModule
from refine_pl.training.phases import Phase
from refine_pl.training.settings import Settings
from refine_pl.training.updater import Updater


class TestTimeTraining(Phase):
    """Before each batch of ``test`` or ``predict`` the ReFINE update on its prompts.

    Optimizer, weights, rewards and sizes are the model's. Every process trains on batches of its
    own, with its own mini-batches: results do not depend on the number of processes. A KL term
    compares with the weights that the test began with.

    Args:
        mode: ``refine``, or ``sft``: next-token training on the prompts instead.
        reset: ``batch`` puts weights and optimizer back after each batch, bit for bit, so that a
            row's answer depends on no prompts but those of its batch. ``never`` is the published
            behaviour: both carry on through the test set, in file order.
    """

    name = "test_time_training"
    trains = False
    __test__ = False  # the name looks like a test to pytest

    def __init__(
        self,
        mode: Literal["sft", "refine"] = "refine",
        reset: Literal["batch", "never"] = "batch",
    ) -> None:
        self.mode = mode
        self.reset = reset
        self._optimizer: Optimizer | None = None
        self._original: list[Tensor] = []
        self._fresh: dict[str, Any] = {}
        self._changed = False
        self._updater: Updater | None = None
        self.batches = 0

    def card(self, module: RefineModule) -> dict[str, Any]:
        """All that decides what is trained, as plain values, for the run card."""
        settings, step = self._settings(module), module.refine_step
        optimizer = module.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
        group = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
        return {
            "mode": self.mode,
            "reset": self.reset,
            "minibatch_size": module.minibatch_size,
            "steps": "per_batch" if module.sizes.minibatch is None else "per_minibatch",
            "rollouts_per": module.sizes.rollouts_per,
            "gradient_clip": module.gradient_clip,
            "optimizer": {"class": type(optimizer).__name__, **group},
            **dataclasses.asdict(settings.plan),
            **dataclasses.asdict(settings.weights),
            "selector": _described(step.selector),
            "advantage": _described(step.advantage),
            "policy_loss": _described(step.policy_loss),
            "rewards": {name: _described(part) for name, part in step.reward.parts().items()},
        }

    def totals(self) -> dict[str, float]:
        """What was done on this process: counts, and means of what updates logged."""
        if self._updater is None:
            return {"batches": 0}
        counters = self._updater.counters
        counts = {
            "batches": self.batches,
            "updates": counters.updates,
            "skipped_steps": counters.skipped_steps,
            "tokens": counters.tokens_seen,
        }
        means = self._updater.tally.means(torch.device("cpu"), lambda values: values)
        seconds = self._updater.stopwatch.seconds
        return counts | means | {f"{part}_s": s for part, s in seconds.items()}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the trainer.

        Raises:
            ConfigError: gradients are turned off, or weights would go on through the test set on
                several processes.
        """
        if stage not in ("test", "predict"):
            return
        assert isinstance(pl_module, RefineModule)
        if self._settings(pl_module).weights.needs_rollouts:
            where = "model.rollouts_per_position"
            pl_module.check_rollouts(self._settings(pl_module), where, None)
        loop = trainer.test_loop if stage == "test" else trainer.predict_loop
        if loop.inference_mode:
            raise ConfigError(
                "trainer.inference_mode is true, and test-time training needs gradients",
                where="trainer.inference_mode",
                way_out="trainer.inference_mode: false",
            )
        if self.reset == "never" and trainer.world_size > 1:
            raise ConfigError(
                f"TestTimeTraining(reset=never) on {trainer.world_size} processes: each would "
                "train on its share of the rows only",
                allowed="reset: batch on any number of processes, reset: never on one",
                way_out="trainer.devices: 1",
            )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the optimizer, and keep the weights."""
        assert isinstance(pl_module, RefineModule)
        parameters = [p for p in pl_module.policy.parameters() if p.requires_grad]
        self._optimizer = pl_module.make_optimizer(parameters)
        lr = min(group["lr"] for group in self._optimizer.param_groups)
        check_small_lr(str(trainer.precision), lr)
        reference: FastWeightLM | None = None
        if self._settings(pl_module).weights.kl_weight:
            reference = frozen_copy(pl_module.policy)
        self._updater = pl_module.make_updater(self._optimizer, reference=reference)
        self._original = [p.detach().clone() for p in parameters] if self.reset == "batch" else []
        # Copied, because an optimizer may change a group's settings.
        self._fresh = torch.utils._pytree.tree_map(lambda x: x, self._optimizer.state_dict())
        self._changed = False
        self.batches = 0

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Train on the prompts."""
        assert isinstance(pl_module, RefineModule)
        assert isinstance(batch, TaskBatch)
        assert self._updater is not None
        self._changed = True
        with torch.enable_grad():
            # The rows name the random streams: not the batch, nor its place in the test set.
            self._updater.refine(batch.prompts, self._settings(pl_module), self.name)
        self.batches += 1

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Put everything back, unless training goes on through the test set."""
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Put everything back when a batch could not be answered."""
        self._restore()

    # What happens to prompts in ``predict`` is what happens in ``test``.
    on_predict_start = on_test_start
    on_predict_batch_start = on_test_batch_start
    on_predict_batch_end = on_test_batch_end

    def _settings(self, module: RefineModule) -> Settings:
        settings = module.own_settings
        return settings if self.mode == "refine" else settings.without_rollouts()

    def _restore(self) -> None:
        if self.reset == "never" or not self._changed or self._optimizer is None:
            return
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        with torch.no_grad():
            for parameter, original in zip(parameters, self._original, strict=True):
                parameter.copy_(original)
                parameter.grad = None
        self._optimizer.state.clear()
        self._optimizer.load_state_dict(self._fresh)
        self._changed = False


def _described(part: Any) -> dict[str, Any]:
    """The class of a part of the algorithm, and its settings as far as they are plain values."""
    settings = {
        name: value
        for name, value in getattr(part, "__dict__", {}).items()
        if not name.startswith("_")
        and name != "training"  # of every torch module: no setting of this one
        and isinstance(value, bool | int | float | str | None)
    }
    return {"class": type(part).__name__, **settings}
