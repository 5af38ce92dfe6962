"""A run of several processes of which one is asked to stop."""

import os
import signal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import Curve, RowsData, module, trainer

from refine_pl.interrupts import Interrupted, heeded
from refine_pl.training.checkpoint_files import save_whole
from refine_pl.training.interruption import Interruption, SignalConnector
from refine_pl.training.stopping import last_checkpoint


class Asks(Callback):
    """SIGTERM to one process, in its third update."""

    def __init__(self, rank):
        self.rank = rank

    def on_train_batch_start(self, trainer, pl_module, *_):
        if pl_module.iteration == 2 and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGTERM)


def stopped(folder, rank):
    """Train until the process ``rank`` is asked to stop; what each one was left with."""
    curve, keeper = Curve(), ModelCheckpoint(folder, save_last=True)
    run = trainer(
        Asks(rank),
        curve,
        keeper,
        Interruption(),
        iterations=100,
        devices=2,
        strategy="ddp",
        enable_checkpointing=True,
    )
    save_whole(run)
    run._signal_connector = SignalConnector(run)
    try:
        with heeded():
            run.fit(module(minibatch_size=4), datamodule=RowsData(num_rows=80))
    except SystemExit as stop:
        cause = stop.__context__
        assert isinstance(cause, Interrupted)
        saved = torch.load(last_checkpoint(run), weights_only=True)
        return {
            "signal": int(cause.signum),
            "updates": len(curve.values),
            "saved": saved["refine_pl"]["iteration"],
        }
    raise AssertionError("the run went on")
