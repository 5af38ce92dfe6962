"""What a resumed run takes from a checkpoint beside the weights, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from refine_pl.errors import CheckpointError
from refine_pl.training.shard_files import check_shards

STATE_KEY = "refine_pl"
"""In a checkpoint: the counters, and what the model and its tokenizer were made from."""


def begin_next_epoch(trainer: Trainer) -> None:
    """Let a run that resumes after the last batch of an epoch begin the next one as any other.

    Lightning counts the finished epoch as done, but takes what follows for the rest of it: the next
    epoch is not counted as begun. A checkpoint that is saved in it then looks finished, and a run
    that resumes from there leaves the state of the training data unread. To be called from
    ``on_train_start``.
    """
    loop = trainer.fit_loop
    if loop.restarted_mid_epoch and loop.epoch_loop.batch_progress.is_last_batch:
        loop.reset_restart_stage()


def class_path(optimizer: Optimizer) -> str:
    """What a checkpoint remembers of an optimizer."""
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def check_optimizer(checkpoint: Mapping[str, Any], optimizer: Optimizer, fresh: bool) -> str:
    """Refuse the state of another optimizer, or none, unless a fresh one is wanted.

    Args:
        checkpoint: its hyper-parameters and what this project keeps in it.
        optimizer: of this run.
        fresh: whether the optimizer is to begin anew.

    Returns:
        What to say about a fresh one.

    Raises:
        CheckpointError: naming both.
    """
    own, saved = class_path(optimizer), _saved_optimizer(checkpoint)
    bare = "lr_schedulers" not in checkpoint  # saved with save_weights_only
    if fresh:
        held = "none" if bare else f"that of {saved}" if saved else "one"
        return f"optimizer: {own} begins with fresh state; the checkpoint holds {held}"
    way_out = "--optimizer_state fresh begins with fresh state (from Python: fresh_optimizer=True)"
    if bare:
        raise CheckpointError(
            f"the checkpoint holds weights alone (save_weights_only), no state for {own}",
            where="--ckpt_path",
            allowed="a checkpoint with the state of the optimizer",
            way_out=way_out,
        )
    # The hyper-parameters name it as the user did, from whichever module has it.
    if saved is not None and saved.rpartition(".")[2] != own.rpartition(".")[2]:
        raise CheckpointError(
            f"the checkpoint holds the state of {saved}, and this run trains with {own}",
            where="model.optimizer",
            allowed="the optimizer of the checkpoint",
            way_out=way_out,
        )
    return ""


def _saved_optimizer(checkpoint: Mapping[str, Any]) -> str | None:
    found = (checkpoint.get(STATE_KEY) or {}).get("optimizer")
    given = (checkpoint.get("hyper_parameters") or {}).get("optimizer")
    given = given.get("class_path") if isinstance(given, Mapping) else given
    return found or (given if isinstance(given, str) else None)


def leave_optimizer_out(checkpoint: dict[str, Any]) -> None:
    """Let the optimizer and the schedule of its rate begin anew."""
    checkpoint["optimizer_states"], checkpoint["lr_schedulers"] = [], []


def check_before_loading(strategy: ModelParallelStrategy, trainer: Trainer) -> None:
    """Let a strategy look through a sharded checkpoint before it has torch load it.

    Such a strategy loads weights and the optimizer's state at once, before any hook is called.

    Args:
        strategy: of the trainer; its ``load_checkpoint`` is exchanged.
        trainer: whose module says whether the optimizer begins anew.
    """

    def load_checkpoint(checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(checkpoint_path)
        if path.is_dir():
            check_shards(path)
        meta = path / "meta.pt" if path.is_dir() else path
        kept = strategy.optimizers
        fresh = bool(getattr(trainer.lightning_module, "fresh_optimizer", False))
        if kept and trainer.state.fn == TrainerFn.FITTING:
            content = torch.load(meta, map_location="cpu", weights_only=weights_only, mmap=True)
            note = check_optimizer(content, kept[0], fresh)
            if note:
                trainer.lightning_module.print(note)
        try:
            strategy.optimizers = [] if fresh else kept
            loaded = type(strategy).load_checkpoint(strategy, path, weights_only)
        finally:
            strategy.optimizers = kept
        if fresh:
            leave_optimizer_out(loaded)
        return loaded

    strategy.load_checkpoint = load_checkpoint  # type: ignore[method-assign]
