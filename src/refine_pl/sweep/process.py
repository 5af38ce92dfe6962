"""Runs in processes of their own: the folder, the log, and how they end."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from refine_pl.interrupts import SIGNALS
from refine_pl.training.run_folder import CHECKPOINTS, CONFIG, CURVES

# As the console script does: nothing in the working folder hides an installed package.
PROGRAM = (sys.executable, "-P", "-m", "refine_pl")

LOG = "run.log"
_RESUMED_FROM = "resumed_from.ckpt"
_GRACE_S = 60  # for a run to save and end by itself
_REASON_SHOWN = 300  # characters


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint of a run folder that was written last and is whole, if there is one."""
    found = [path for path in (run / CHECKPOINTS).glob("*.ckpt") if _is_whole(path)]
    # Of two that were written in the same tick the one that stands for the last.
    last = ("last", _RESUMED_FROM)
    return max(found, key=lambda p: (p.stat().st_mtime_ns, p.name.startswith(last)), default=None)


def prepare(run: Path) -> Path | None:
    """Make a run's folder ready for another attempt.

    With a checkpoint the run goes on from there; a table of curves that an attempt left becomes
    ``metrics_1.csv``, ``metrics_2.csv`` and so on. Without one it starts anew, and what the broken
    attempt left is removed; the log stays.

    Returns:
        The checkpoint to go on from.
    """
    run.mkdir(parents=True, exist_ok=True)
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        for path in run.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOG:
                path.unlink()
        return None
    # `fit` refuses a folder that holds a run, lest it mixes two; here it is the same one.
    (run / CONFIG).unlink(missing_ok=True)
    curves = run / CURVES
    if curves.exists():  # CSVLogger begins with an empty file and removes the one that is there
        number = sum(1 for _ in run.glob(f"{curves.stem}_*{curves.suffix}")) + 1
        curves.rename(curves.with_stem(f"{curves.stem}_{number}"))
    if checkpoint.name.startswith("last") and not checkpoint.is_symlink():
        # Lightning would write last-v1.ckpt beside it, and last.ckpt would be an old one.
        checkpoint = checkpoint.rename(checkpoint.with_name(_RESUMED_FROM))
    return checkpoint


def clear(run: Path) -> None:
    """Remove what only an unfinished run needs."""
    spare = run / CHECKPOINTS / _RESUMED_FROM
    newest = newest_checkpoint(run)
    if newest is not None and newest != spare:
        spare.unlink(missing_ok=True)


def start(
    command: Sequence[str], log: Path, held: int, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program that appends what it prints to ``log``.

    Args:
        command: the program and its arguments.
        log: its folder must exist.
        held: a file descriptor that the process inherits.
        environment: its variables; this process's if left out.
    """
    with log.open("a", encoding="utf-8") as output:
        output.write(f"$ {shlex.join(command)}\n")
        output.flush()
        # A session of its own, so that Ctrl-C reaches it once, through this process.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(held,),
            env=environment,
        )


def was_interrupted(code: int) -> bool:
    """Whether a signal asked a run to stop, which it may do again from where it stopped.

    Args:
        code: of the process, or the signal's number below 0; the run may have noticed the signal,
            or just ended.
    """
    return code in {sign for signum in SIGNALS for sign in (128 + signum, -signum)}


def reason(log: Path, start: int, code: int) -> str:
    """Why a run failed, in a line; earlier attempts wrote the first ``start`` bytes of its log."""
    if code < 0:
        return f"ended by signal {-code} ({signal.Signals(-code).name})"
    text = log.read_bytes()[start:].decode(errors="replace")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    begin = next((i for i in reversed(range(len(lines))) if lines[i].startswith("error: ")), -1)
    told = [line.strip() for line in lines[begin:]]
    return " ".join(told)[:_REASON_SHOWN] if told else f"exit code {code}"


def end_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask programs to stop, all at once, and wait; what then still runs is killed.

    Args:
        processes: leaders of their sessions, as :func:`start` makes them.
    """
    _signal(processes, signal.SIGINT)
    limit = time.monotonic() + _GRACE_S
    try:
        for process in processes:
            process.wait(max(0.0, limit - time.monotonic()))
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        _signal(processes, signal.SIGKILL)
        for process in processes:
            process.wait()


def _signal(processes: Sequence[subprocess.Popen[bytes]], signum: int) -> None:
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signum)


def _is_whole(path: Path) -> bool:
    return (path / "meta.pt").is_file() if path.is_dir() else zipfile.is_zipfile(path)
