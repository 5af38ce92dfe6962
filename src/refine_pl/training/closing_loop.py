"""A run that goes on after its last batch, because it broke before it had come to its end."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop

from refine_pl.training.run_place import goes_on_in_place


class ClosingLoop(_FitLoop):
    """Lightning's loop, but that it begins and ends such a run too, without a batch between.

    Lightning passes over a run that has made its epochs or updates: no hook of its start and its
    end is called, and what was still due after the last batch is never done.
    """

    @property
    def skip(self) -> bool:
        """Whether there is neither anything to train nor anything to close."""
        if self.trainer.limit_train_batches == 0 or self.max_batches == 0:
            return super().skip
        return not goes_on_in_place(self.trainer) and super().skip


def close_runs(trainer: Trainer) -> None:
    """Give a new trainer this loop."""
    given = trainer.fit_loop
    loop = ClosingLoop(trainer, given.min_epochs, given.max_epochs)
    loop.epoch_loop = given.epoch_loop
    trainer.fit_loop = loop
