"""Functions in several processes that talk to each other, forked from one that has loaded torch.

The server of ``multiprocessing`` imports what takes seconds once, and every process of every test
is forked from it: a process costs a tenth of a second instead of five.
"""

import multiprocessing
import os
import socket
import sys
import tempfile
import traceback
from pathlib import Path

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "lightning.pytorch", "refine_pl.commands.lightning_cli"])


def run_processes(work, processes, *arguments, timeout_s=300, killed=()):
    """Run ``work(*arguments)`` in each of so many processes; what it returned in each, by rank.

    For Lightning they look as if torchrun had started them, unless there is only one.

    Args:
        work: a function of a module in ``tests/helpers``.
        processes: how many.
        arguments: plain values and paths.
        timeout_s: for each of them.
        killed: ranks that do not live to return anything; None stands for what they returned.
    """
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        files = [Path(folder, f"{rank}.pt") for rank in range(processes)]
        started = [
            _CONTEXT.Process(
                target=_run, args=(work, rank, processes, port, files[rank], arguments)
            )
            for rank in range(processes)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(timeout_s)
            if process.is_alive():
                _kill(started)
                raise AssertionError(f"{work.__name__} still runs after {timeout_s} s")
        errors = [file.with_suffix(".txt") for file in files]
        said = "\n".join(error.read_text() for error in errors if error.exists())
        codes = {rank: process.exitcode for rank, process in enumerate(started)}
        assert [rank for rank, code in codes.items() if code] == list(killed), said
        return [torch.load(f, weights_only=True) if f.exists() else None for f in files]


def _kill(started):
    for process in started:
        process.kill()
        process.join()


def _run(work, rank, processes, port, file, arguments):
    torch.set_num_threads(1)
    if processes > 1:
        os.environ |= {
            "TORCHELASTIC_RUN_ID": str(port),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
        }
    try:
        torch.save(work(*arguments), file)
    except BaseException:
        file.with_suffix(".txt").write_text(f"process {rank}: {traceback.format_exc()}")
        sys.exit(1)
