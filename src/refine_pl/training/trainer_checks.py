"""Checks of the trainer before a run starts: what it must not do, because the updates do it."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn

from refine_pl.errors import ConfigError
from refine_pl.training.resuming import check_before_loading


def check_sharding(trainer: Trainer, has_adapter: bool = False) -> None:
    """Let a sharded run spread the weights over all processes, or refuse what it cannot do.

    Args:
        trainer: of the run.
        has_adapter: whether the policy's own weights are frozen beside an adapter.

    Raises:
        ConfigError: another layout of processes, an adapter, or a run that answers.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        return
    if has_adapter:
        raise ConfigError(
            "trainer.strategy is ModelParallelStrategy, and model.adapter is given: sharded "
            "checkpoints hold whole models",
            where="trainer.strategy",
            allowed="auto or ddp with an adapter: its base is frozen and needs no optimizer state",
        )
    check_before_loading(strategy, trainer)
    processes = trainer.world_size
    sizes = strategy._data_parallel_size, strategy._tensor_parallel_size
    if sizes[0] not in ("auto", processes) or sizes[1] not in ("auto", 1):
        raise ConfigError(
            f"ModelParallelStrategy has data_parallel_size={sizes[0]}, "
            f"tensor_parallel_size={sizes[1]}, and there are {processes} processes",
            where="trainer.strategy.init_args",
            allowed=f"{processes} and 1: weights are sharded, and no layer is split",
            way_out="leave both out",
        )
    # Left out, Lightning would split layers within a machine.
    strategy._data_parallel_size, strategy._tensor_parallel_size = processes, 1
    if trainer.state.fn in (TrainerFn.TESTING, TrainerFn.PREDICTING):
        raise ConfigError(
            "trainer.strategy is ModelParallelStrategy, and sharded weights are for training and "
            "validation only",
            where="trainer.strategy",
            allowed="auto or ddp",
            way_out="`refine-pl export` the checkpoint, and give its folder as model.pretrained",
        )


def check_manual_optimization(trainer: Trainer) -> None:
    """Refuse what the updates do by themselves.

    Raises:
        ConfigError: at the first setting that does not fit.
    """
    if trainer.accumulate_grad_batches != 1:
        raise ConfigError(
            f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}",
            allowed="1: this model accumulates the micro-batches of a mini-batch by itself",
            way_out="set model.minibatch_size and model.microbatch_size",
        )
    if trainer.gradient_clip_val:
        raise ConfigError(
            f"trainer.gradient_clip_val is {trainer.gradient_clip_val}",
            allowed="nothing: this model clips its own gradients",
            way_out=f"model.gradient_clip: {trainer.gradient_clip_val}",
        )
    if isinstance(trainer.strategy, FSDPStrategy):
        raise ConfigError(
            "trainer.strategy is FSDP, which cannot run several backward passes per batch",
            allowed="auto, ddp, or lightning.pytorch.strategies.ModelParallelStrategy",
        )


def check_checkpoints(trainer: Trainer, updates: int | None) -> None:
    """Refuse to save between the updates of a batch: a resume goes on from whole batches.

    Args:
        trainer: its checkpoint callbacks are checked.
        updates: optimizer steps of a batch; None if they differ.

    Raises:
        ConfigError: at the first setting that does not fit.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if not isinstance(callback, ModelCheckpoint):
            continue
        every = callback._every_n_train_steps
        if every > 0 and updates is None:
            raise ConfigError(
                f"ModelCheckpoint(every_n_train_steps={every}) counts optimizer steps, and the "
                "stages of this run make different numbers of them per batch",
                where="checkpoint",
                way_out="leave it out: the schedule validates, and so saves, after every stage",
            )
        if every > 0 and updates is not None and every % updates:
            raise ConfigError(
                f"ModelCheckpoint(every_n_train_steps={every}) counts optimizer steps, and a batch "
                f"makes {updates} of them",
                where="checkpoint",
                allowed=f"a multiple of {updates}",
                way_out=f"every_n_train_steps: {every * updates} saves every {every} batches",
            )
        if callback._train_time_interval is not None:
            raise ConfigError(
                "ModelCheckpoint(train_time_interval) never saves under manual optimization",
                where="checkpoint",
                way_out=f"every_n_train_steps: a multiple of {updates or 'the updates per batch'}",
            )


def check_log_folders(trainer: Trainer) -> None:
    """Refuse a logger whose name or version leads out of the folder that it may write to.

    Raises:
        ConfigError: naming the logger.
    """
    for logger in trainer.loggers:
        if not isinstance(logger, CSVLogger | TensorBoardLogger):
            continue
        root = os.path.abspath(logger.save_dir)
        words = {name: getattr(logger, f"_{name}", None) for name in ("name", "version", "sub_dir")}
        for name, value in words.items():
            text = os.path.expandvars(str(value or ""))
            inside = Path(os.path.abspath(os.path.join(root, text))).is_relative_to(root)
            if not inside or ".." in Path(text).parts:
                raise ConfigError(
                    f"the {name} of {type(logger).__name__} is {value!r}, which leads out of "
                    f"{logger.save_dir}",
                    where="trainer.logger",
                    allowed="a name, or several with / between them",
                    way_out="the folder of all runs is trainer.logger.init_args.save_dir",
                )
