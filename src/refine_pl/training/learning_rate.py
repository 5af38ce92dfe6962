"""The learning rate of an iteration: the optimizer's own, a stage's, or a schedule's of torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable
from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from refine_pl.errors import ConfigError


class SequentialLR(torch_schedulers.SequentialLR):
    """Torch's ``SequentialLR`` as a configuration can name it.

    Torch's own takes schedulers that are made already, each with the optimizer, which does not
    exist when a configuration is read.

    Args:
        optimizer: whose rate is set; given by the run.
        schedulers: what comes one after the other, each a class of ``torch.optim.lr_scheduler``.
        milestones: iterations at which the next one begins, one fewer than there are schedulers.
    """

    def __init__(
        self, optimizer: Optimizer, schedulers: list[LRSchedulerCallable], milestones: list[int]
    ) -> None:
        super().__init__(optimizer, [make(optimizer) for make in schedulers], milestones)


def check_finite(where: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings of an optimizer that are NaN or infinite.

    Raises:
        ConfigError: naming the first one.
    """
    for name, value in settings.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{name} is {number}", where=where, allowed="a finite number")


class LearningRate:
    """Sets the rate before each iteration. The configuration decides, not a checkpoint.

    Args:
        optimizer: as it was made.
        make_scheduler: makes a scheduler of torch that counts iterations, or None.

    Attributes:
        scheduler: what was made; its place is kept in checkpoints.

    Raises:
        ConfigError: the scheduler waits for a metric, or a setting is NaN or infinite.
    """

    def __init__(
        self, optimizer: Optimizer, make_scheduler: Callable[[Optimizer], Any] | None
    ) -> None:
        self._own = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        for group in self._own:
            check_finite("model.optimizer", group)
        scheduler = None if make_scheduler is None else make_scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ConfigError(
                "model.lr_scheduler is ReduceLROnPlateau, which waits for a metric",
                where="model.lr_scheduler",
                allowed="a class of torch.optim.lr_scheduler that counts steps",
            )
        self.scheduler: LRScheduler | None = scheduler

    @property
    def smallest(self) -> float:
        """Of the rates that the optimizer was made with."""
        return min(group["lr"] for group in self._own)

    def restore(self, optimizer: Optimizer) -> None:
        """Give the optimizer its own settings again, after a checkpoint has set them.

        A scheduler goes on from its place in the checkpoint.

        Raises:
            ConfigError: that scheduler started from another rate.
        """
        for group, own in zip(optimizer.param_groups, self._own, strict=True):
            now = group["lr"]
            group.update(own)
            if self.scheduler is None:
                continue
            group["lr"] = now
            if group["initial_lr"] != own["lr"]:
                raise ConfigError(
                    f"model.optimizer has the learning rate {own['lr']:g}, and the schedule of the "
                    f"checkpoint goes on from {group['initial_lr']:g}",
                    where="model.optimizer",
                    allowed=f"lr: {group['initial_lr']:g} with model.lr_scheduler",
                    way_out="or leave model.lr_scheduler out, and set the rate by stages",
                )

    def apply(self, optimizer: Optimizer, stage: float | None) -> None:
        """Set the rate of an iteration.

        Args:
            optimizer: whose rate is set.
            stage: the rate that a stage of the schedule gives, or None.
        """
        if self.scheduler is not None:
            return
        for group, own in zip(optimizer.param_groups, self._own, strict=True):
            group["lr"] = own["lr"] if stage is None else stage

    def advance(self) -> None:
        """Count a finished iteration."""
        if self.scheduler is not None:
            self.scheduler.step()
