"""A mend of Lightning's resume at the end of an epoch."""

from __future__ import annotations

from lightning.pytorch import Trainer


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
