"""Validation at a moment that a callback chooses."""

from __future__ import annotations

import sys

from lightning.pytorch import Trainer

from refine_pl.training.random_state import undisturbed


def run_validation(trainer: Trainer) -> None:
    """Run the validation loop of ``fit`` now, from ``on_train_start`` or ``on_train_batch_end``.

    This is what Lightning's training loop does after a batch when validation is due: all validation
    hooks are called, metrics go to the loggers, and checkpoints that follow validation are saved.
    The global random generators are left as they were.
    """
    connector = trainer._logger_connector
    first_iteration = connector._first_loop_iter
    with undisturbed():
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
    connector._first_loop_iter = first_iteration


def take_over_validation(trainer: Trainer) -> None:
    """Turn off Lightning's validation after each epoch, unless the user chose an interval."""
    if trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1:
        trainer.check_val_every_n_epoch = sys.maxsize


def validates_on_stop(trainer: Trainer) -> bool:
    """Whether Lightning validates by itself when a callback stops the run after this batch."""
    loop = trainer.fit_loop
    return bool(loop.epoch_loop._should_check_val_epoch() and loop._can_stop_early)
