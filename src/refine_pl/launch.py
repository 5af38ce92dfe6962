"""The processes of a run, as whoever started them says: torchrun, srun, or the trainer itself.

Read from the environment alone, so that the command line can use it before torch is loaded.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from refine_pl.errors import ConfigError

_STALE_S = 600.0  # a mark this old was left by a run that had the same numbers by chance
_PATIENCE_S = 3.0  # what an error of another process has, to be said first


@dataclass(frozen=True, slots=True)
class Launch:
    """Processes that something other than the trainer has started.

    Attributes:
        processes: on each machine.
        machines: that take part.
    """

    processes: int
    machines: int


def launched(environ: Mapping[str, str] | None = None) -> Launch | None:
    """How many processes torchrun or srun has started; None if neither has.

    Args:
        environ: the environment; that of this process if left out.

    Raises:
        ConfigError: srun started several tasks, and nothing says how many on each machine.
    """
    environ = os.environ if environ is None else environ
    if "TORCHELASTIC_RUN_ID" in environ:
        here = int(environ["LOCAL_WORLD_SIZE"])
        return Launch(here, int(environ["WORLD_SIZE"]) // here)
    if not _by_srun(environ):
        return None
    tasks = int(environ["SLURM_NTASKS"])
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in environ:
        raise ConfigError(
            f"srun started {tasks} tasks, and nothing says how many of them on each machine",
            where="the job's script",
            way_out="#SBATCH --nodes=N and #SBATCH --ntasks-per-node=M, in place of --ntasks",
        )
    here = int(environ.get("SLURM_NTASKS_PER_NODE", 1))
    return Launch(here, int(environ.get("SLURM_NNODES", tasks // here)))


def slurm_job(environ: Mapping[str, str] | None = None) -> str | None:
    """The number of the SLURM job that srun started this process in; requeuing keeps it."""
    environ = os.environ if environ is None else environ
    return environ.get("SLURM_JOB_ID") if _by_srun(environ) else None


def is_first_to_say(*, of_another: bool = False) -> bool:
    """Whether no other process of this run on this machine has said yet what went wrong.

    What one process meets, most often all do. Who asks first is told yes, the others no.

    Args:
        of_another: another process went wrong, as far as this one knows. It is given some seconds
            to say more, and then only one process speaks for it.
    """
    start = _start(os.environ)
    if start is None:
        return True
    name = hashlib.blake2b(repr((os.getuid(), *start)).encode(), digest_size=8).hexdigest()
    own = Path(tempfile.gettempdir()) / f"refine-pl-{name}.said"
    if not of_another:
        return _mark(own)
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        if _is_marked(own):
            return False
        time.sleep(0.05)
    return _mark(own.with_suffix(".lost"))


def _mark(file: Path) -> bool:
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        if _is_marked(file):
            return False
        file.touch()
    except OSError:
        pass  # it is better said twice than not at all
    return True


def _is_marked(file: Path) -> bool:
    try:
        return time.time() - file.stat().st_mtime < _STALE_S
    except OSError:
        return False


def _by_srun(environ: Mapping[str, str]) -> bool:
    # In an interactive job srun is the shell's, as Lightning sees it too.
    interactive = environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_NTASKS" in environ and not interactive


def _start(environ: Mapping[str, str]) -> tuple[object, ...] | None:
    """What the processes of one start have in common on a machine; None for one process alone."""
    if "TORCHELASTIC_RUN_ID" in environ:
        restarts = environ.get("TORCHELASTIC_RESTART_COUNT")
        run = environ["TORCHELASTIC_RUN_ID"]
        return ("torchrun", os.getppid(), run, restarts, environ.get("MASTER_PORT"))
    if _by_srun(environ):
        if environ["SLURM_NTASKS"] == "1":
            return None
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "SLURM_NODEID")
        return ("srun", *map(environ.get, names))
    rank = environ.get("LOCAL_RANK")  # set by the trainer, which starts the others from the first
    return None if rank is None else ("trainer", os.getpid() if rank == "0" else os.getppid())
