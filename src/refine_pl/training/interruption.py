"""A training run that is asked to stop: it finishes the update, saves, and says how to go on."""

from __future__ import annotations

import signal
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.utilities import _is_max_limit_reached
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from refine_pl.interrupts import Interrupted, interrupts


class Interruption(Callback):
    """Ends a training run at the border of an update if a signal has come to any process.

    What is due after the update (a validation, the end of the run) is finished too: the run has
    saved by then, so that nothing is lost if the time does not suffice. A signal that comes during
    a validation waits for the next update. Must be the last of the callbacks that save nothing.
    """

    def __init__(self) -> None:
        self._stopping = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on signals wait; before there is nothing to save."""
        self._stopping = 0
        interrupts().waiting = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Leave if all that was due is finished.

        Raises:
            Interrupted: a signal has come before.
        """
        if self._stopping:
            raise Interrupted(self._stopping)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save and leave if a signal has come.

        Raises:
            Interrupted: with the signal; no text yet.
        """
        word = torch.tensor(interrupts().requested, device=trainer.strategy.root_device)
        # Every process takes part in every save, so all must stop after the same update.
        stop = int(torch.as_tensor(trainer.strategy.reduce(word, reduce_op="max")))
        if stop and not self._stopping:
            save_now(trainer)
            self._stopping = stop
            if not _more_is_due(trainer):
                raise Interrupted(stop)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The run is complete and its last checkpoint written, whatever was asked."""
        self._stopping = 0
        interrupts().forget()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Nothing is saved any more, so no signal waits for it."""
        interrupts().waiting = False


class SignalConnector(_SignalConnector):
    """Lightning's handlers, but for that of SIGTERM.

    That one begins to talk to the other processes at once, while they may be talking of something
    else. :class:`~refine_pl.callbacks.requeue.Requeue` takes the one of SLURM's requeueing.
    """

    def register_signal_handlers(self) -> None:
        """Take the signals, from the first batch of a run to its end."""
        super().register_signal_handlers()
        if self._original_handlers.get(signal.SIGTERM) == interrupts().handle:
            self._register_signal(signal.SIGTERM, interrupts().handle)


def save_now(trainer: Trainer) -> None:
    """Save a checkpoint as the run's ModelCheckpoint would, if it has one; all processes must.

    It becomes the ``last.ckpt``; a run that keeps none gets ``interrupted-step=<updates>.ckpt``.
    """
    callbacks = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    callbacks = [c for c in callbacks if not c.save_weights_only]
    if not callbacks or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    keeper = next((c for c in callbacks if c.save_last), callbacks[0])
    saved_at = keeper._last_global_step_saved
    names = keeper._monitor_candidates(trainer)
    if keeper.save_last is not True:
        name = keeper.format_checkpoint_name(names, "interrupted-{step}")
        keeper._save_checkpoint(trainer, name)
    keeper._save_last_checkpoint(trainer, names)
    keeper._last_global_step_saved = saved_at  # its own checkpoint of this update may be due


def _more_is_due(trainer: Trainer) -> bool:
    """Whether a validation or the end of the run follows this batch."""
    loop = trainer.fit_loop
    epoch = loop.epoch_loop
    epochs = loop.epoch_progress.current.processed + 1  # type: ignore[attr-defined]
    most_epochs = -1 if loop.max_epochs is None else loop.max_epochs
    return bool(
        trainer.should_stop
        or _is_max_limit_reached(epoch.global_step, epoch.max_steps)
        or (epoch._num_ready_batches_reached() and _is_max_limit_reached(epochs, most_epochs))
        or (loop._data_fetcher is not None and epoch._should_check_val_fx(loop._data_fetcher))
    )
