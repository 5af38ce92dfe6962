"""``refine-pl`` in processes of which one is killed, for ``run_processes``."""

import os
import signal

import command_line
from lightning.pytorch import Callback


class KillAt(Callback):
    """Kills one process in the middle of an iteration."""

    def __init__(self, rank: int, iteration: int = 2):
        self.rank, self.iteration = rank, iteration

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_rank == self.rank and pl_module.iteration == self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)


def command(folder, *words):
    """``refine-pl words`` in one of several processes: exit code and output."""
    os.chdir(folder)
    done = command_line.run(*words)
    return {"code": done.code, "stdout": done.stdout, "stderr": done.stderr}
