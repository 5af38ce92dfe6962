"""Test-time training: the ReFINE update on test prompts before they are answered."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from refine_pl.backbones import FastWeightLM
from refine_pl.errors import ConfigError
from refine_pl.stopwatch import Stopwatch
from refine_pl.task_records import TaskBatch
from refine_pl.training.checks import check_small_lr
from refine_pl.training.module import RefineModule
from refine_pl.training.phases import PhaseCallback, without_rollouts
from refine_pl.training.run_phases import describe_iteration
from refine_pl.training.tally import Tally
from refine_pl.training.updater import Processes, UpdateLoop


class TestTimeTraining(PhaseCallback):
    """Before each batch of ``test`` or ``predict`` the ReFINE update on its prompts.

    Optimizer, weights, rewards and sizes are the model's. Every process trains on batches of its
    own, with its own mini-batches: results do not depend on the number of processes. A KL term
    compares with the weights that the test began with.

    Args:
        mode: ``refine``, or ``sft``: next-token training on the prompts instead.
        reset: ``batch`` puts weights and optimizer back after each batch, bit for bit, so that no
            row sees another one's prompt but those of its batch. ``never`` is the published
            behaviour: both go on through the test set, in file order.
    """

    phase = "test_time_training"
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
        self._reference: FastWeightLM | None = None
        self._original: list[Tensor] = []
        self._fresh: dict[str, Any] = {}
        self._changed = False
        self._tally = Tally()
        self._stopwatch = Stopwatch()
        self.batches = self.updates = self.skipped_steps = self.tokens = 0

    def describe(self, module: Any, batch_size: int, settings: Any) -> str:
        """What happens before a batch of so many prompts; for people."""
        text = describe_iteration(module, batch_size, self._settings(module))
        return text.replace(" sequences", " prompts", 1)

    def card(self, module: RefineModule) -> dict[str, Any]:
        """All that decides what is trained, as plain values, for the run card."""
        settings, step = self._settings(module), module.refine_step
        optimizer = module.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
        group = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
        return {
            "mode": self.mode,
            "reset": self.reset,
            "minibatch_size": module.minibatch_size,
            "steps": module.steps,
            "rollouts_per": module.rollouts_per,
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
        counts = {
            "batches": self.batches,
            "updates": self.updates,
            "skipped_steps": self.skipped_steps,
            "tokens": self.tokens,
        }
        means = self._tally.means(torch.device("cpu"), lambda values: values)
        return counts | means | {f"{k}_s": v for k, v in self._stopwatch.seconds.items()}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the trainer.

        Raises:
            ConfigError: gradients are turned off, or weights would go on through the test set on
                several processes.
        """
        super().setup(trainer, pl_module, stage)
        if stage not in ("test", "predict"):
            return
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
        self._reference = None
        if self._settings(pl_module).weights.kl_weight:
            self._reference = copy.deepcopy(pl_module.policy).requires_grad_(False)
        self._original = [p.detach().clone() for p in parameters] if self.reset == "batch" else []
        # Copied, because an optimizer may change a group's settings.
        self._fresh = torch.utils._pytree.tree_map(lambda x: x, self._optimizer.state_dict())
        self._changed = False
        self._tally, self._stopwatch = Tally(), Stopwatch(pl_module.device)
        self.batches = self.updates = self.skipped_steps = self.tokens = 0

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
        assert self._optimizer is not None
        loop = UpdateLoop(
            pl_module,
            self._optimizer,
            Processes.alone(),
            self._tally,
            self._stopwatch,
            reference=self._reference,
        )
        self._changed = True
        with torch.enable_grad():
            # The rows name the random streams: not the batch, nor its place in the test set.
            loop.refine(batch.prompts, self._settings(pl_module), 0, self.phase)
        self.batches += 1
        self.updates += loop.updates
        self.skipped_steps += loop.skipped
        self.tokens += loop.tokens

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

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As in ``test``."""
        self.on_test_start(trainer, pl_module)

    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """As in ``test``."""
        self.on_test_batch_start(trainer, pl_module, batch, batch_idx)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """As in ``test``."""
        self._restore()

    def _settings(self, module: RefineModule) -> Any:
        settings = module.own_settings
        return settings if self.mode == "refine" else without_rollouts(settings)

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
