"""How the progress bar is laid out: count and time are there at every width of the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

_LABEL = 20  # characters of a stage's name at most
_BAR = 24
_OTHERS = 34  # characters of count, times and what is between them, for counts of 4 digits


class Bars(Progress):
    """A line for each task: what it is, a bar, the count, the time and the time left.

    The words of a task, say its loss, stand on the same line where there is room, else below.

    Args:
        console: where it is shown.
    """

    def __init__(self, console: Console) -> None:
        self._below = ""
        super().__init__(
            TextColumn("{task.description:<12}"),  # bars stay in place when the stage changes
            # The one column that shrinks.
            BarColumn(bar_width=max(4, min(_BAR, console.width - 13 - _OTHERS))),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("left"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[words]}"),
            console=console,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """The lines of the tasks, and the words that have no room there."""
        yield from super().get_renderables()
        if self._below:
            yield Text(self._below, no_wrap=True, overflow="ellipsis")

    def add(self, label: str, total: int | None, done: int) -> TaskID:
        """A task without words."""
        return self.add_task(_short(label), total=total, completed=done, words="")

    def show(self, task: TaskID, label: str, done: int, words: Sequence[str]) -> None:
        """How far a task has come."""
        joined = "  ".join(words)
        self.update(task, description=_short(label), completed=done, words="")
        room = self.console.width - self.console.measure(self.make_tasks_table(self.tasks)).maximum
        fits = len(joined) <= room
        self._below = "" if fits else joined
        if fits:
            self.update(task, words=joined)


def _short(label: str) -> str:
    return label if len(label) <= _LABEL else label[: _LABEL - 1] + "…"
