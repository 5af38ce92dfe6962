"""The progress of ``test`` and ``predict``: rows that are answered, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class AnsweringProgress:
    """A bar in a terminal, now and then a line elsewhere.

    Args:
        console: where it is shown.
        total: rows to answer, over all processes; those that were answered before are not among
            them.
        processes: that answer at the same speed, more or less: only this one's rows are counted.
        line_every_s: where the output is not a terminal, a line is printed this often.
        print_line: prints a line.
    """

    def __init__(
        self,
        console: Console,
        total: int,
        processes: int,
        line_every_s: float,
        print_line: Callable[[str], None],
    ) -> None:
        self.total, self.processes = total, processes
        self.rows = self.tokens = 0
        self._line_every_s, self._print_line = line_every_s, print_line
        self._started_at = self._line_at = time.monotonic()
        self.bar: Progress | None = None
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("answering"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[speed]}"),
                console=console,
            )
            self._task = self.bar.add_task("", total=total, speed="")
            self.bar.start()

    def advance(self, rows: int, tokens: int) -> None:
        """Show that this process has answered ``rows`` more, with ``tokens`` tokens."""
        self.rows = min(self.rows + rows * self.processes, self.total)
        self.tokens += tokens * self.processes
        now = time.monotonic()
        speed = f"tokens/s {self.tokens / max(now - self._started_at, 1e-9):,.0f}"
        if self.bar is not None:
            self.bar.update(self._task, completed=self.rows, speed=speed)
        elif now - self._line_at >= self._line_every_s or self.rows == self.total:
            self._line_at = now
            self._print_line(f"answered {self.rows}/{self.total}  {speed}{self._time_left(now)}")

    def stop(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.stop()

    def _time_left(self, now: float) -> str:
        if self.rows == 0 or self.rows == self.total:
            return ""
        seconds = int((now - self._started_at) / self.rows * (self.total - self.rows))
        return f"  {seconds // 60}:{seconds % 60:02d} left"
