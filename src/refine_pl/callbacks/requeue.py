"""A job of SLURM that nears its time limit: save between two iterations, and queue the job again.

Lightning saves inside the handler of the signal, wherever the run happens to be: in the middle of
a batch, which no resume can go on from, and each process in another place, which hangs if saving
needs them all. Here the handler only takes note, and all processes act after the same iteration.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

_NAME = re.compile(r"hpc_ckpt_(\d+)\.ckpt")  # as Lightning calls them


def newest_of_job(folder: str | Path) -> Path | None:
    """The checkpoint that a job which was queued again goes on from, if there is one.

    Args:
        folder: the ``default_root_dir`` of the trainer.
    """
    found = _numbered(Path(folder))
    return found[max(found)] if found else None


class EndOfJob(SystemExit):
    """The time of the job is up, and the run was saved."""


class Requeue(Callback):
    """Goes on in a new run of the same job, from the very iteration, when the scheduler signals.

    Does nothing outside of SLURM, or if ``SLURMEnvironment(auto_requeue=False)`` is among the
    trainer's plugins. The checkpoint lies in ``trainer.default_root_dir``, and
    :func:`newest_of_job` finds it in the second run. To be the last of a trainer's callbacks, so
    that it saves what they leave.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._is_asked = False
        self._waits_for_validation = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signal over from Lightning, which gives it back to whoever had it before."""
        place = trainer._accelerator_connector.cluster_environment
        self._signal, self._is_asked, self._waits_for_validation = None, False, False
        if isinstance(place, SLURMEnvironment) and place.auto_requeue:
            assert place.requeue_signal is not None
            self._signal = place.requeue_signal
            signal.signal(self._signal, self._take_note)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        """Save and queue again, if any process was asked to; a run that ends here may end."""
        if self._signal is None or trainer.should_stop:
            return
        if not trainer.strategy.reduce_boolean_decision(self._is_asked, all=False):
            return
        loop = trainer.fit_loop
        assert loop._data_fetcher is not None
        if loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            self._waits_for_validation = True  # which a resume from here would leave out
        else:
            self._requeue(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save and queue again, if that waited for the validation after a batch."""
        if self._waits_for_validation:
            self._requeue(trainer)

    def _take_note(self, *_: Any) -> None:
        self._is_asked = True

    def _requeue(self, trainer: Trainer) -> None:
        """Leaves with exit code 0, or with the signal's if the job could not be queued again."""
        assert self._signal is not None
        folder = Path(trainer.default_root_dir)
        older = trainer.strategy.broadcast(_numbered(folder))  # the same on every process
        path = folder / f"hpc_ckpt_{max(older, default=0) + 1}.ckpt"
        trainer.save_checkpoint(path)
        code, text = 0, ""
        if trainer.is_global_zero:
            for file in older.values():
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            job = _job()
            if _queue_again(job):
                text = f"time is up: saved {path}; job {job} is queued again and goes on from there"
            else:
                code = 128 + self._signal
                text = (
                    f"time is up: saved {path}; job {job} could not be queued again, "
                    f"continue with --ckpt_path {path}"
                )
            print(text, flush=True)  # noqa: T201
        raise EndOfJob(trainer.strategy.broadcast(code))


def _numbered(folder: Path) -> dict[int, Path]:
    # Not as Lightning does, which takes a file that was cut off for one of them.
    names = {_NAME.fullmatch(path.name): path for path in folder.glob("hpc_ckpt_*")}
    return {int(match[1]): path for match, path in names.items() if match}


def _job() -> str:
    """The job's number, as ``scontrol`` takes it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _queue_again(job: str) -> bool:
    try:
        return subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0
    except FileNotFoundError:
        return False
