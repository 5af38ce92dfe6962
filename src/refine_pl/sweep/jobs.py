"""Programs side by side, a few at a time, each with its log and its share of the CPU's cores."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from refine_pl.sweep.process import end_all, start

_POLL_S = 0.1
_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, slots=True)
class Program:
    """What a task runs next: it is resumed with the exit code, or the signal's number below 0."""

    command: Sequence[str]
    log: Path  # what it prints is appended; the folder must exist


Task = Generator[Program, int, str]  # programs one after the other, and how it all ended


def side_by_side(tasks: Iterable[Task], jobs: int, held: int) -> Iterator[str]:
    """Carry out tasks in their order, ``jobs`` at a time, and yield how each of them ended.

    Args:
        tasks: a task begins when there is room for it.
        jobs: how many programs run at once.
        held: a file descriptor that the programs inherit.

    Raises:
        KeyboardInterrupt: a signal has come. All programs have ended, and their tasks know.
    """
    waiting, running = iter(tasks), deque[tuple[Popen[bytes], Task]]()
    environment = _environment(jobs)

    def next_program(task: Task, code: int | None) -> str | None:
        """Go on with a task; how it ended, if it did."""
        try:
            program = next(task) if code is None else task.send(code)
        except StopIteration as stop:
            return str(stop.value)
        running.append((start(program.command, program.log, held, environment), task))
        return None

    try:
        while True:
            while len(running) < jobs and (task := next(waiting, None)) is not None:
                ended = next_program(task, None)
                if ended is not None:
                    yield ended
            if not running:
                return
            process, task = _first_ended(running)
            ended = next_program(task, process.returncode)
            if ended is not None:
                yield ended
    except BaseException:
        end_all([process for process, _ in running])
        for process, task in running:
            _tell(task, process.returncode)
        raise


def _first_ended(running: deque[tuple[Popen[bytes], Task]]) -> tuple[Popen[bytes], Task]:
    """Wait for a program, and take it out of those that run."""
    while True:
        for one in running:
            if one[0].poll() is not None:
                running.remove(one)
                return one
        if len(running) == 1:
            running[0][0].wait()
        else:
            time.sleep(_POLL_S)


def _tell(task: Task, code: int) -> None:
    """Let a task know that its program was asked to stop, or had just finished."""
    try:
        if code == 0:
            task.send(code)
        else:
            task.throw(KeyboardInterrupt())
    except (KeyboardInterrupt, StopIteration):
        return


def _environment(jobs: int) -> Mapping[str, str] | None:
    """That of programs which share the cores; one alone has this process's.

    Two programs that each take every core are slower than one after the other.
    """
    if jobs == 1 or _THREADS in os.environ:
        return None
    return {**os.environ, _THREADS: str(max(1, len(os.sched_getaffinity(0)) // jobs))}
