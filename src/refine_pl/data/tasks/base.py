"""A task source gives rows: prompts with their answers, in a fixed order."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence  # noqa: F401 (in comments)
from pathlib import Path  # noqa: F401 (in a comment)

from refine_pl.errors import DataError
from refine_pl.task_records import TaskRow
from refine_pl.tokenizers import Tokenizer


class TaskSource(ABC):
    """Rows of one or several tasks.

    A source of your own is a subclass with one method, :meth:`rows`, in a file of the folder you
    start ``refine-pl`` from; name it in YAML as ``class_path: my_tasks.MyTask``. Row ids must be
    unique and stay the same from run to run: they name the random streams of the rows.

    Attributes:
        notes: what people should know about the rows of the latest call of :meth:`rows`, one line
            each, for example how many rows of a file were left out.
        cache_dir: where sources that generate rows keep them; the data module sets it.
            ``$REFINE_PL_CACHE`` or ``~/.cache/refine-pl`` if ``None``.
        notify: receives a line when something slow is about to begin.
    """

    # Comments: the parser reads the annotations of a dataclass and of its bases with the names of
    # the subclass's module, and takes any value for all of its arguments where one is missing.
    notes = ()  # type: Sequence[str]
    cache_dir = None  # type: Path | None
    notify = staticmethod(logging.getLogger(__name__).info)  # type: Callable[[str], None]

    @abstractmethod
    def rows(self, tokenizer: Tokenizer) -> list[TaskRow]:
        """The rows, the same and in the same order every time.

        Args:
            tokenizer: what lengths are counted with.

        Raises:
            DataError: a row cannot be used.
        """

    @property
    def label(self) -> str:
        """What people read in messages: the class and where its rows are from."""
        return type(self).__name__


def check_unique(rows: Iterable[tuple[str, TaskRow]], way_out: str) -> list[TaskRow]:
    """The rows, each of which is given with where it is from and has an id of its own.

    Raises:
        DataError: naming both rows that have one id.
    """
    found: dict[str, tuple[str, TaskRow]] = {}
    for where, row in rows:
        if row.id in found:
            raise DataError(
                f"two rows have the id {row.id!r}",
                where=f"{found[row.id][0]}, and {where}",
                allowed="an id of its own for each row: it names the row's random numbers and its "
                "answer",
                way_out=way_out,
            )
        found[row.id] = where, row
    return [row for _, row in found.values()]
