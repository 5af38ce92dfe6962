"""A task source gives rows: prompts with their answers, in a fixed order."""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

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

    notes: Sequence[str] = ()
    cache_dir: Path | None = None
    notify: Callable[[str], None] = staticmethod(logging.getLogger(__name__).info)

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

    def fingerprint(self, tokenizer: Tokenizer) -> str:
        """A digest of all that decides the rows; here of the rows themselves."""
        return rows_hash(self.rows(tokenizer))


def rows_hash(rows: Iterable[TaskRow]) -> str:
    """A digest of the content of rows, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
