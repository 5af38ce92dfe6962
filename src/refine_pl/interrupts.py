"""What happens when a person or a cluster asks the program to stop.

Ctrl-C (SIGINT), SIGTERM, SIGHUP and SIGUSR1 raise :class:`Interrupted` where the program is, which
then leaves with exit code 130, 143, 129 or 138. While a training runs they wait for the end of an
update (see :mod:`refine_pl.training.interruption`); a second signal does not wait.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# A terminal, a launcher and a cluster may each pass on the same request.
_SAME_REQUEST_S = 2.0


class Interrupted(KeyboardInterrupt):
    """The program was asked to stop.

    Args:
        signum: the signal.
        text: what was saved, and how to go on.
    """

    def __init__(self, signum: int, text: str = "") -> None:
        self.signum = signum
        super().__init__(text)

    @property
    def exit_code(self) -> int:
        """What a shell reports for a program that this signal ended."""
        return 128 + self.signum

    @property
    def name(self) -> str:
        """``Ctrl-C``, ``SIGTERM``."""
        known = signal.Signals(self.signum)
        return "Ctrl-C" if known is signal.SIGINT else known.name


class Interrupts:
    """The signals of this process, from :func:`heeded` on.

    Attributes:
        waiting: whether signals wait, to be found in ``requested``.
        requested: the signal that came while they waited, or 0.
    """

    def __init__(self) -> None:
        self.waiting = False
        self.requested = 0
        self._since = 0.0
        self._taken: dict[int, object] = {}

    def install(self) -> None:
        """Take the signals that nobody else has taken.

        A signal that is ignored stays so: ``nohup`` is meant to be obeyed.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        free = (signal.SIG_DFL, signal.default_int_handler)
        for signum in SIGNALS:
            now = signal.getsignal(signum)
            if now in free:
                self._taken.setdefault(signum, now)
                signal.signal(signum, self.handle)

    def restore(self) -> None:
        """Give the signals back."""
        for signum, before in self._taken.items():
            signal.signal(signum, before)  # type: ignore[arg-type]
        self._taken = {}
        self.forget()

    def forget(self) -> None:
        """Signals no longer wait, and none has come."""
        self.waiting, self.requested = False, 0

    def handle(self, signum: int, frame: FrameType | None = None) -> None:
        """Note the first signal if signals wait, and leave at any other.

        Raises:
            Interrupted: signals do not wait, or one has come before.
        """
        now = time.monotonic()
        if self.waiting and not self.requested:
            self.requested, self._since = signum, now
        elif not self.requested or now - self._since > _SAME_REQUEST_S:
            raise Interrupted(signum)


_interrupts = Interrupts()


def interrupts() -> Interrupts:
    """Those of this process."""
    return _interrupts


@contextlib.contextmanager
def heeded() -> Iterator[Interrupts]:
    """Inside, the signals raise :class:`Interrupted` in the main thread."""
    _interrupts.install()
    try:
        yield _interrupts
    finally:
        _interrupts.restore()


def leave_to_parent(worker: int = 0) -> None:
    """In a process that reads data for another one: that one decides when to stop.

    A terminal and a cluster signal all processes of a job. A reader that ended would break the
    update that its parent finishes. SIGTERM counts when it comes again, as the parent sends it.

    Args:
        worker: its number, which torch gives.
    """
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
