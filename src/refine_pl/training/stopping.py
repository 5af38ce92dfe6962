"""A run that has to stop: its state is saved first, and the error says how to go on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from refine_pl.faults import NotFiniteError, PartError, StopError

STOPPED = "stopped.ckpt"
"""What :func:`save_border` writes, beside the other checkpoints of the run."""


class Border:
    """The place between two batches: what a run that goes on from there must know of the loops.

    Lightning counts a batch as read before the training step. A checkpoint that is saved when the
    step fails needs the counts of before, or the batch would be left out.
    """

    def __init__(self) -> None:
        self.loops: dict[str, Any] | None = None
        self.updates = 0

    def remember(self, trainer: Trainer, updates: int) -> None:
        """Nothing of a batch has been done, or all of it."""
        self.loops = copy.deepcopy(trainer._checkpoint_connector._get_loops_state_dict())
        self.updates = updates

    def save(self, trainer: Trainer, folder: Path) -> Path:
        """Write a checkpoint of the border; every process must call it."""
        connector = trainer._checkpoint_connector
        original = connector._get_loops_state_dict
        connector._get_loops_state_dict = lambda: self.loops or original()  # type: ignore
        try:
            trainer.save_checkpoint(folder / STOPPED)
        finally:
            del connector._get_loops_state_dict
        return folder / STOPPED


@contextmanager
def saving(trainer: Trainer, border: Border, updates: Any) -> Iterator[None]:
    """Inside ``fit``: what ends the run is raised again, with the checkpoint to go on from.

    Args:
        trainer: of the run.
        border: the last one.
        updates: called, gives the optimizer steps that were taken.

    Raises:
        StopError: with the checkpoint in its way out.
    """
    try:
        yield
    except StopError as error:
        whole = updates() == border.updates  # no update of this batch has been made
        agreed = error.everywhere or trainer.world_size == 1
        saved = None
        if isinstance(error, PartError) and whole and agreed:
            folder = checkpoint_folder(trainer)
            saved = None if folder is None else border.save(trainer, folder)
        raise _with_way_out(error, saved or last_checkpoint(trainer)) from error


def _with_way_out(error: StopError, checkpoint: Path | None) -> StopError:
    """The same error, naming the checkpoint to go on from."""
    good = "the last good checkpoint is" if isinstance(error, NotFiniteError) else "go on with"
    option = "" if isinstance(error, NotFiniteError) else "--ckpt_path "
    found = f"{good} {option}{checkpoint}" if checkpoint else "no checkpoint was written"
    mend = error.way_out
    if mend is None and isinstance(error, NotFiniteError):
        mend = "go back to it with a smaller learning rate, or a smaller model.gradient_clip"
    if mend is None and "model.rewards" in (error.where or ""):
        mend = "mend it; or on_error: zero counts the reward as 0 for such a batch"
    parts = [found, mend] if isinstance(error, NotFiniteError) else [mend or "mend it", found]
    made = type(error)(
        error.what,
        where=error.where,
        allowed=error.allowed,
        way_out="; ".join(part for part in parts if part),
    )
    made.everywhere = error.everywhere
    return made


def checkpoint_folder(trainer: Trainer) -> Path | None:
    """Where the run's checkpoints are; None if it keeps none. Every process must ask for it."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            return Path(str(callback.dirpath))  # settled when the run was set up
    return None


def last_checkpoint(trainer: Trainer) -> Path | None:
    """The newest checkpoint that this run has written and that is still there."""
    callbacks = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    paths = [path for c in callbacks for path in (c.last_model_path, c._last_checkpoint_saved)]
    written = [path for path in map(Path, filter(None, paths)) if path.exists()]
    return max(written, key=lambda path: path.stat().st_mtime, default=None)
