"""``refine-pl`` in processes that are forked from this one, which has imported what takes seconds.

Where what is tested is that a run has a process of its own, and not how that begins.
"""

import os
import subprocess
import sys
import traceback

from refine_pl import cli
from refine_pl.sweep.process import PROGRAM


class Forks:
    """In the place of the module ``subprocess``, as a sweep uses it."""

    DEVNULL, STDOUT = subprocess.DEVNULL, subprocess.STDOUT

    class Popen:
        """A program in a fork of this process."""

        def __init__(self, command, stdin, stdout, stderr, start_new_session, pass_fds, env):
            assert tuple(command[: len(PROGRAM)]) == PROGRAM
            assert (stdin, stderr) == (subprocess.DEVNULL, subprocess.STDOUT)
            assert start_new_session
            assert env is None
            assert all(map(os.fstat, pass_fds))  # a fork has every file that is open
            sys.stdout.flush()
            self.returncode = None
            self.pid = os.fork()
            if self.pid == 0:
                _child(command[len(PROGRAM) :], stdout.fileno())

        def poll(self):
            """The exit code, or the number of the signal that ended it, below 0; None before."""
            return self._ask(os.WNOHANG)

        def wait(self):
            """The same, when it has ended."""
            return self._ask(0)

        def _ask(self, how):
            if self.returncode is None:
                ended, status = os.waitpid(self.pid, how)
                self.returncode = os.waitstatus_to_exitcode(status) if ended else None
            return self.returncode


def _child(words, log):
    """Runs the command and never returns."""
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        code = cli.main(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
