"""Rows of tasks from the user's own files: ``.jsonl``, ``.parquet``, and ``.txt`` for prompts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt

from refine_pl.data.bad_rows import BadRows, column_choice
from refine_pl.data.content_hash import file_hash
from refine_pl.data.named_rows import NamedRow, find_files, named_rows, shown_paths, text_lines
from refine_pl.data.tasks.base import TaskSource
from refine_pl.data.tasks.columns import answers_of, missing_column, report_missing, text_of
from refine_pl.errors import DataError
from refine_pl.task_records import TaskRow
from refine_pl.tokenizers import Tokenizer

UNNAMED_TASK = "prompts"
"""The task of rows that name none and need no answers."""

ANSWER_COLUMNS = ("answers", "answer")
_LENGTH_COLUMN = "max_seq_length"


class RowFiles(BadRows, TaskSource):
    """Rows from files.

    Each line of a ``.jsonl`` file and each row of a ``.parquet`` file is a row. A ``.txt`` file
    holds one prompt per line, without answers. Blank lines are no rows. Files are read in the order
    given, those of a pattern sorted by path.

    Args:
        paths: paths or patterns, relative to the folder that ``refine-pl`` was started from.
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

    def __init__(
        self,
        paths: str | list[str],
        task: str | None = None,
        prompt_column: str = "prompt",
        answers_column: str | None = None,
        id_column: str | None = None,
        task_column: str = "task",
        budget_column: str = "max_gen_tokens",
        max_gen_tokens: PositiveInt = 32,
        length: PositiveInt | None = None,
        on_bad_row: Literal["error", "skip"] = "error",
        require_answers: bool = True,
    ) -> None:
        self.paths = [paths] if isinstance(paths, str) else list(paths)
        self.task = task
        self.prompt_column = prompt_column
        self.answers_column = answers_column
        self.id_column = id_column
        self.task_column = task_column
        self.budget_column = budget_column
        self.max_gen_tokens = max_gen_tokens
        self.length = length
        self.on_bad_row = on_bad_row
        self.require_answers = require_answers

    @property
    def label(self) -> str:
        """The paths as they were given, shortened."""
        return f"RowFiles {shown_paths(self.paths)}"

    def files(self) -> list[str]:
        """The files that ``paths`` stands for.

        Raises:
            DataError: a file is missing, a pattern matches nothing, or a suffix is unknown.
        """
        files = find_files(self.paths, (".txt", ".jsonl", ".parquet"))
        for name in files:
            if name.endswith(".txt") and self.require_answers:
                raise DataError(
                    "a .txt file holds prompts without answers",
                    where=name,
                    way_out="require_answers: false, or a .jsonl or .parquet file with answers",
                )
        return files

    def fingerprint(self, tokenizer: Tokenizer) -> str:
        """A digest of the files' bytes and of the settings; the tokenizer changes nothing."""
        settings = (
            1,  # raised when the same files give other rows
            self.task,
            self.prompt_column,
            self.answers_column,
            self.id_column,
            self.task_column,
            self.budget_column,
            self.max_gen_tokens,
            self.length,
            self.on_bad_row,
            self.require_answers,
        )
        digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
        files = self.files()
        for name, short in zip(files, short_names(files), strict=True):
            digest.update(repr((short, file_hash(Path(name)))).encode())
        return digest.hexdigest()

    def rows(self, tokenizer: Tokenizer) -> list[TaskRow]:
        """The rows of all files.

        Raises:
            DataError: a row cannot be used, two rows have one id, or there is not one row.
        """
        self.skipped_rows, self.first_skipped = 0, None
        rows: list[TaskRow] = []
        found_at: dict[str, str] = {}
        for where, row in self._read():
            if row.id in found_at:
                raise DataError(
                    f"two rows have the id {row.id!r}",
                    where=f"{found_at[row.id]}, and {where}",
                    allowed="an id of its own for each row",
                    way_out="another id_column, or none: rows are then named by file and number",
                )
            found_at[row.id] = where
            rows.append(row)
        if not rows:
            what = f"{self.label} holds no row"
            if self.skipped_rows:
                what += f": all {self.skipped_rows} were skipped"
            raise DataError(what, where=self.first_skipped, allowed="at least one row")
        self.notes = (
            [f"skipped rows: {self.skipped_rows:,}; the first was {self.first_skipped}"]
            if self.skipped_rows
            else []
        )
        return rows

    def _read(self) -> Iterator[tuple[str, TaskRow]]:
        files = self.files()
        for name, short in zip(files, short_names(files), strict=True):
            if name.endswith(".txt"):
                for number, line in text_lines(self, name):
                    where = f"{name}, line {number}"
                    prompt = line.rstrip("\r\n")
                    yield where, self._row(prompt, (), self.task or UNNAMED_TASK, short, number)
                continue
            for named in named_rows(self, name, self._wanted):
                row = self._task_row(named, short)
                if row is not None:
                    yield named.where, row

    @property
    def _wanted(self) -> list[str]:
        columns = [self.prompt_column, self.task_column, self.budget_column, _LENGTH_COLUMN]
        columns += [self.answers_column] if self.answers_column else ANSWER_COLUMNS
        return columns + ([self.id_column] if self.id_column else [])

    def _row(
        self,
        prompt: str,
        answers: tuple[str, ...],
        task: str,
        short: str,
        number: int,
        *,
        row_id: str | None = None,
        budget: int | None = None,
        length: int | None = None,
    ) -> TaskRow:
        length = self.length or length
        parts = [task, *([str(length)] if length else []), short, str(number)]
        return TaskRow(
            id=row_id or "/".join(parts),
            task=task,
            prompt=prompt,
            answers=answers,
            max_gen_tokens=budget or self.max_gen_tokens,
            length=length,
        )

    def _task_row(self, named: NamedRow, short: str) -> TaskRow | None:
        """The row, or None after a report."""
        before = self.skipped_rows
        prompt = text_of(self, named, self.prompt_column, "prompt_column")
        answers = self._answers(named) if prompt is not None else None
        if prompt is None or answers is None:
            return None
        task = self._task(named)
        row_id = self._id(named)
        budget = self._count(named, self.budget_column)
        length = self._count(named, _LENGTH_COLUMN) if self.length is None else None
        if task is None or self.skipped_rows > before:
            return None
        return self._row(
            prompt, answers, task, short, named.number, row_id=row_id, budget=budget, length=length
        )

    def _answers(self, named: NamedRow) -> tuple[str, ...] | None:
        columns = [self.answers_column] if self.answers_column else list(ANSWER_COLUMNS)
        column = next((c for c in columns if c in named.columns), None)
        if column is None:
            if not self.require_answers and self.answers_column is None:
                return ()
            missing_column(self, named, columns[0], "answers_column")
            return None
        return answers_of(self, named, column, self.require_answers)

    def _task(self, named: NamedRow) -> str | None:
        if self.task is not None:
            return self.task
        if not self.require_answers and self.task_column not in named.columns:
            return UNNAMED_TASK
        if self.task_column not in named.columns:
            allowed, _ = column_choice(self.task_column, named.columns, "task_column")
            report_missing(
                self, named, self.task_column, allowed, "task: NAME, or a task_column that exists"
            )
            return None
        return text_of(self, named, self.task_column, "task_column")

    def _id(self, named: NamedRow) -> str | None:
        column = self.id_column
        if column is None:
            return None
        if column not in named.columns:
            missing_column(self, named, column, "id_column")
            return None
        value = named.values[column]
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return text_of(self, named, column, "id_column")

    def _count(self, named: NamedRow, column: str) -> int | None:
        """A number of tokens, or None where there is none or it was reported."""
        value = named.values.get(column)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.bad_row(
                f"column {column!r} holds {value!r:.40}",
                where=named.where,
                allowed="a number of tokens, at least 1",
            )
            return None
        return value


def short_names(files: list[str]) -> list[str]:
    """The names of files without folder and ending, or with as much of both as tells them apart."""
    paths = [Path(name) for name in files]
    names = [path.stem for path in paths]
    for depth in range(2, max(len(path.parts) for path in paths) + 1):
        count = Counter(names)
        names = [
            "/".join(path.with_suffix("").parts[-depth:]) if count[name] > 1 else name
            for name, path in zip(names, paths, strict=True)
        ]
    count = Counter(names)
    return [
        name + path.suffix if count[name] > 1 else name
        for name, path in zip(names, paths, strict=True)
    ]
