"""Checkpoints that are whole whenever they can be seen (see :mod:`refine_pl.whole_files`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, XLAStrategy

from refine_pl import whole_files


class WholeCheckpointIO(TorchCheckpointIO):
    """Saves as Lightning does, but into a scratch file in the checkpoint's own folder.

    Lightning writes into the temporary folder and moves the file, which is not one step where that
    is another file system. Addresses with a protocol (``s3://``) are left to Lightning.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Save, and replace an older checkpoint of this name when the new one is on the disk.

        Raises:
            WriteError: it cannot be written; an older one is unharmed.
        """
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with whole_files.whole_file(Path(path)) as scratch, scratch.open("wb") as file:
            torch.save(checkpoint, file)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint; the folder of a sharded one is renamed before."""
        if _is_local_file_protocol(path):
            whole_files.remove(Path(path))
        else:
            super().remove_checkpoint(path)


def save_whole(trainer: Trainer) -> None:
    """Let a trainer write whole checkpoints only.

    A ``CheckpointIO`` of the user's own stays; one that wraps another (``AsyncCheckpointIO``) wraps
    this one.
    """
    strategy = trainer.strategy
    if isinstance(strategy, ModelParallelStrategy):
        _save_whole_folders(strategy)
    own = strategy._checkpoint_io
    if isinstance(own, _WrappingCheckpointIO):
        own.checkpoint_io = WholeCheckpointIO()  # nothing, if it wraps one of the user's own
    elif own is None and not isinstance(strategy, XLAStrategy):
        strategy.checkpoint_io = WholeCheckpointIO()


def _save_whole_folders(strategy: Strategy) -> None:
    """Let every process write its shards into a scratch folder, which the first one renames."""
    write = strategy.save_checkpoint

    def save_checkpoint(
        checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(strategy.broadcast(filepath))
        scratch = whole_files.scratch_path(path) if strategy.is_global_zero else None
        scratch = strategy.broadcast(scratch)
        assert scratch is not None
        write(checkpoint, scratch, storage_options)
        strategy.barrier("shards written")
        if strategy.is_global_zero:
            whole_files.replace(scratch, path)
        strategy.barrier("checkpoint renamed")

    strategy.save_checkpoint = save_checkpoint  # type: ignore[method-assign]
