"""Jobs of a scheduler that is not there, for ``run_processes``: its variables and ``scontrol``."""

import os
import signal
from pathlib import Path

import command_line
from lightning.pytorch import Callback

CALLS = "scontrol.txt"


class SignalAt(Callback):
    """The scheduler's signal, in the middle of an iteration and elsewhere in each process."""

    def __init__(self, iteration: int):
        self.iteration = iteration

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 0 and pl_module.iteration == self.iteration:
            os.kill(os.getpid(), signal.SIGUSR1)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_rank == 1 and pl_module.iteration == self.iteration - 1:
            os.kill(os.getpid(), signal.SIGUSR1)


def write_program(folder, name, text):
    """A program of the shell, in the folder that jobs look in first."""
    program = folder / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


def write_scontrol(folder, code=0):
    """A program that writes down how it is called."""
    write_program(folder, "scontrol", f'echo "$@" >> "{folder / CALLS}"\nexit {code}')


def job(folder, number, *words):
    """``srun refine-pl words`` in one process of a job: exit code and output."""
    rank, processes = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    os.environ.pop("TORCHELASTIC_RUN_ID", None)
    os.environ |= {
        "PATH": f"{Path(folder, 'bin')}:{os.environ['PATH']}",
        "SLURM_JOB_ID": number,
        "SLURM_JOB_NAME": "refine",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NTASKS": processes,
        "SLURM_NTASKS_PER_NODE": processes,
        "SLURM_PROCID": rank,
        "SLURM_LOCALID": rank,
    }
    os.chdir(folder)
    done = command_line.run(*words)
    return {"code": done.code, "stdout": done.stdout, "stderr": done.stderr}
