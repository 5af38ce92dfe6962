"""Checks of callbacks before a run starts: what would silently do nothing, or fail much later."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Trainer
from lightning.pytorch import callbacks as stock

from refine_pl.errors import ConfigError, did_you_mean
from refine_pl.training.metrics import metric_of, metrics

_NAMED = "<name>"
_COUNTERS = ("epoch", "step")  # that Lightning itself adds for ModelCheckpoint
_OURS = ("refine_pl", "lightning")  # their callbacks log what the metric table lists

# Callbacks that need Lightning's own optimization: what is wrong, and what to use instead.
UNFIT: dict[type[stock.Callback], tuple[str, str]] = {
    stock.GradientAccumulationScheduler: (
        "the model accumulates the micro-batches of a mini-batch by itself",
        "set model.minibatch_size and model.microbatch_size",
    ),
    stock.StochasticWeightAveraging: (
        "its learning rate (swa_lrs) would not be used: the model sets its own",
        "lightning.pytorch.callbacks.EMAWeightAveraging or WeightAveraging, with model.lr_scheduler"
        " for the rate",
    ),
    stock.LearningRateFinder: (
        "it needs automatic optimization",
        "a sweep over model.optimizer.init_args.lr (refine-pl sweep)",
    ),
    stock.BatchSizeFinder: (
        "the batch size is part of the method, and memory depends on model.microbatch_size",
        "refine-pl bench measures the memory of a setting",
    ),
    stock.SpikeDetection: (
        "it reads the loss that a training step returns, and here a step makes several updates",
        "model.gradient_clip; train/loss is in the log",
    ),
}


def check_callbacks(trainer: Trainer, own_module: bool, rewards: Sequence[str]) -> None:
    """Refuse callbacks that cannot do what they are there for.

    Args:
        trainer: its callbacks are checked.
        own_module: whether the module is of this package: another may log more.
        rewards: names of the rewards; they stand in names of scalars.

    Raises:
        ConfigError: naming the callback.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        for kind, (reason, way_out) in UNFIT.items():
            if isinstance(callback, kind):
                raise ConfigError(
                    f"{kind.__name__} cannot be used: {reason}",
                    where="trainer.callbacks",
                    way_out=way_out,
                )
    known = own_module and all(type(c).__module__.startswith(_OURS) for c in callbacks)
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(callback, stock.EarlyStopping | stock.ModelCheckpoint) and monitor:
            if isinstance(callback, stock.EarlyStopping) and monitor.startswith("val/"):
                _compare_after_validation(callback)
            where = f"{type(callback).__name__}.monitor"
            if known:
                _check_name(monitor, where, rewards)
            if monitor.startswith("val/") and not trainer.limit_val_batches:
                raise ConfigError(
                    f"nothing would be watched: {monitor} is of validation, and this run has none "
                    f"(trainer.limit_val_batches is {trainer.limit_val_batches})",
                    where=where,
                )


def _compare_after_validation(callback: stock.EarlyStopping) -> None:
    """Unless the user chose: Lightning would compare the same value again after each epoch."""
    if callback._check_on_train_epoch_end is None:
        callback._check_on_train_epoch_end = False


def _check_name(monitor: str, where: str, rewards: Sequence[str]) -> None:
    """Refuse a scalar that nothing logs."""
    metric = metric_of(monitor)
    names = [
        m.name.replace(_NAMED, reward)
        for m in metrics()
        for reward in (rewards if m.name.startswith(("val/reward_", "reward/")) else (_NAMED,))
    ]
    missing_reward = (
        metric is not None
        and _NAMED in metric.name
        and metric.name.startswith(("val/reward_", "reward/"))
        and monitor not in names
    )
    if monitor in _COUNTERS or (metric is not None and not missing_reward):
        return
    raise ConfigError(
        f"nothing logs {monitor!r}",
        where=where,
        allowed='a scalar of the page "Reading a run", such as val/ntp_loss or val/reward',
        way_out=did_you_mean(monitor, names),
    )
