"""Rows of tasks from the user's own files: ``.jsonl``, ``.parquet``, and ``.txt`` for prompts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from jsonargparse.typing import PositiveInt

from refine_pl.data.file_records import FileReader, FileRecord, OnBadRow, answer_columns
from refine_pl.data.standard_input import STANDARD_INPUT, StandardInput
from refine_pl.data.tasks.base import TaskSource, check_unique
from refine_pl.errors import DataError
from refine_pl.task_records import TaskRow
from refine_pl.tokenizers import Tokenizer

UNNAMED_TASK = "prompts"
"""The task of rows that name none and need no answers."""

T = TypeVar("T")

_LENGTH_COLUMN = "max_seq_length"


@dataclass
class RowFiles(FileReader, TaskSource):
    """Rows from files.

    Each line of a ``.jsonl`` file and each row of a ``.parquet`` file is a row. A ``.txt`` file
    holds one prompt per line, without answers. Blank lines are left out. Files are read in the
    order given, those of a pattern sorted by path.

    Args:
        paths: paths or patterns, relative to the folder that ``refine-pl`` was started from; or
            ``-``, standard input: JSON lines if it begins with ``{``, otherwise a prompt per line.
        task: the task of every row; otherwise ``task_column`` names it.
        prompt_column: holds the prompt.
        answers_column: holds a list of right answers, or one; ``answers`` or else ``answer`` if not
            set.
        id_column: holds a unique text or number per row; otherwise rows are named by task, length,
            file and number.
        task_column: holds the task, where ``task`` is not set.
        budget_column: holds the most tokens that an answer may have, where there is one.
        max_gen_tokens: that number for rows without one.
        length: the length that tables show the rows under, tokens; otherwise the column
            ``max_seq_length`` gives it, where there is one.
        on_bad_row: ``error`` stops at a row that cannot be used; ``skip`` leaves it out and counts.
        require_answers: whether a row without answers is one that cannot be used.
    """

    paths: str | list[str]
    task: str | None = None
    prompt_column: str = "prompt"
    answers_column: str | None = None
    id_column: str | None = None
    task_column: str = "task"
    budget_column: str = "max_gen_tokens"
    max_gen_tokens: PositiveInt = 32
    length: PositiveInt | None = None
    on_bad_row: OnBadRow = "error"
    require_answers: bool = True

    def files(self) -> list[str]:
        """The files that ``paths`` stands for.

        Raises:
            DataError: a file is missing or cannot be read, or cannot hold the answers.
        """
        if STANDARD_INPUT not in self.paths:
            files = super().files()
            bare = next((name for name in files if name.endswith(".txt")), None)
        elif len(self.paths) > 1:
            paths = ", ".join(self.paths)
            raise DataError("standard input stands among files", where=paths, allowed="- alone")
        else:
            files = [STANDARD_INPUT]
            bare = None if self._input.hold_json else STANDARD_INPUT
        if bare and self.require_answers:
            kind = "standard input" if bare == STANDARD_INPUT else "a .txt file"
            raise DataError(
                f"{kind} holds prompts without answers",
                where=bare,
                way_out="require_answers: false, or a .jsonl or .parquet file with answers",
            )
        return files

    def named_files(self) -> dict[str, str]:
        """The files by their short names."""
        files = self.files()
        return {"stdin": STANDARD_INPUT} if files == [STANDARD_INPUT] else super().named_files()

    def read_file(
        self, name: str, columns: Collection[str], make: Callable[[FileRecord], T]
    ) -> Iterator[T]:
        """What ``make`` makes of every record of a file, or of standard input."""
        if name != STANDARD_INPUT:
            return super().read_file(name, columns, make)
        given = self._input
        return self.read_lines(given.lines, "standard input", given.hold_json, columns, make)

    @cached_property
    def _input(self) -> StandardInput:
        return StandardInput.read()

    def rows(self, tokenizer: Tokenizer) -> list[TaskRow]:
        """The rows of all files.

        Raises:
            DataError: a row cannot be used, two rows have one id, or there is not one row.
        """
        way_out = "another id_column, or none: rows are then named by file and number"
        rows = check_unique(self.counted(self._read, "row"), way_out)
        self.notes = self.skip_notes()
        return rows

    def _read(self) -> Iterator[tuple[str, TaskRow]]:
        columns = [self.prompt_column, self.task_column, self.budget_column, self.id_column]
        wanted = [*columns, _LENGTH_COLUMN, *answer_columns(self.answers_column)]
        return self.read_files(wanted, self._row)

    def _row(self, short: str, record: FileRecord) -> tuple[str, TaskRow]:
        """Where a record of the file that is called ``short`` stands, and its row."""
        prompt = record.text(self.prompt_column, "prompt_column")
        answers = record.answers(self.answers_column, self.require_answers)
        task = self._task(record)
        budget = record.count(self.budget_column) or self.max_gen_tokens
        length = self.length or record.count(_LENGTH_COLUMN)
        parts = (task, length, short, record.number)
        row_id = self._id(record) or "/".join(str(part) for part in parts if part is not None)
        return record.where, TaskRow(row_id, task, prompt, answers, budget, length)

    def _task(self, record: FileRecord) -> str:
        if self.task is not None:
            return self.task
        if not self.require_answers and self.task_column not in record.columns:
            return UNNAMED_TASK
        record.value(self.task_column, "", "task: NAME, or a task_column that exists")
        return record.text(self.task_column, "task_column")

    def _id(self, record: FileRecord) -> str | None:
        if self.id_column is None:
            return None
        value = record.value(self.id_column, "id_column")
        return str(value) if type(value) is int else record.text(self.id_column, "id_column")
