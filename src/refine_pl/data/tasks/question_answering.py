"""Questions about many documents (RULER), made of questions that come with their paragraphs.

The paragraphs that answer a question stand between paragraphs of other questions, as many as fit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import PositiveInt

from refine_pl.data.bad_rows import BadRows
from refine_pl.data.content_hash import file_hash
from refine_pl.data.named_rows import NamedRow, find_files, named_rows, shown_paths
from refine_pl.data.tasks.base import TaskSource
from refine_pl.data.tasks.columns import answers_of, missing_column, text_of
from refine_pl.data.tasks.draws import Draws
from refine_pl.data.tasks.fitting import most_that_fits
from refine_pl.data.tasks.row_cache import MadeRows, cached_rows
from refine_pl.data.tasks.row_files import ANSWER_COLUMNS, short_names
from refine_pl.data.token_cache import default_cache_dir
from refine_pl.errors import ConfigError, DataError
from refine_pl.task_records import TaskRow
from refine_pl.tokenizers import Tokenizer

FORMAT = 1  # raised when the same settings give other rows

_INSTRUCTION = (
    "Use the passages to answer the question. Reply with the answer alone and add nothing to it."
)
TEMPLATE = (
    f"{_INSTRUCTION}\n\nThese are the passages.\n{{documents}}\n\n{_INSTRUCTION}\n\n"
    "Question: {question}\nAnswer:"
)
"""The layout of the published rows, in words of our own."""


@dataclass(frozen=True, slots=True)
class Question:
    """One row of the input."""

    name: str  # file and number
    question: str
    answers: tuple[str, ...]
    paragraphs: tuple[str, ...]  # those that answer it


class MultiDocumentQA(BadRows, TaskSource):
    """Rows of ``ruler_squadqa``, ``ruler_hotpotqa`` or a task of your own, from questions.

    A row of the input has a question, its answers, and the paragraphs that hold them. Here it
    becomes a prompt of numbered documents in random order: those paragraphs, never cut, and
    paragraphs of other rows until no further one fits. Rows are kept in the cache folder.

    Args:
        paths: ``.jsonl`` or ``.parquet`` files, or patterns.
        lengths: tokens of a row, prompt and answer together.
        task: the name that the rows are scored under.
        num_rows: rows of each length, the first that fit; all if not set.
        question_column: holds the question.
        answers_column: holds a list of right answers, or one; ``answers`` or else ``answer`` if not
            set.
        paragraphs_column: holds a list of texts, or of ``{title: ..., text: ...}``.
        max_gen_tokens: the most tokens that an answer may have; they are left free.
        template: the prompt, with ``{documents}`` and ``{question}`` once each.
        seed: of the choice and the order of documents.
        on_long_row: a question whose own paragraphs do not fit a length is left out of that length
            (``skip``, counted) or stops the run (``error``).
        on_bad_row: ``error`` stops at a row that cannot be used; ``skip`` leaves it out and counts.
    """

    def __init__(
        self,
        paths: str | list[str],
        lengths: list[PositiveInt],
        task: str = "ruler_squadqa",
        num_rows: PositiveInt | None = None,
        question_column: str = "question",
        answers_column: str | None = None,
        paragraphs_column: str = "paragraphs",
        max_gen_tokens: PositiveInt = 32,
        template: str = TEMPLATE,
        seed: int = 0,
        on_long_row: Literal["skip", "error"] = "skip",
        on_bad_row: Literal["error", "skip"] = "error",
    ) -> None:
        self.paths = [paths] if isinstance(paths, str) else list(paths)
        self.lengths = list(lengths)
        self.task = task
        self.num_rows = num_rows
        self.question_column = question_column
        self.answers_column = answers_column
        self.paragraphs_column = paragraphs_column
        self.max_gen_tokens = max_gen_tokens
        self.template = template
        self.seed = seed
        self.on_long_row = on_long_row
        self.on_bad_row = on_bad_row
        if not lengths or len(set(lengths)) < len(lengths) or min(lengths) <= max_gen_tokens:
            raise ConfigError(
                f"lengths is {self.lengths}",
                where="MultiDocumentQA",
                allowed="one or more different numbers of tokens, each more than max_gen_tokens "
                f"({max_gen_tokens})",
            )
        for field in ("{documents}", "{question}"):
            if template.count(field) != 1:
                raise ConfigError(
                    f"the template has {field} {template.count(field)} times",
                    where="MultiDocumentQA",
                    allowed="{documents} and {question} once each",
                )

    @property
    def label(self) -> str:
        """The task, and the paths as they were given, shortened."""
        return f"MultiDocumentQA {self.task} of {shown_paths(self.paths)}"

    def fingerprint(self, tokenizer: Tokenizer) -> str:
        """A digest of the settings, the tokenizer and the files' bytes."""
        files = find_files(self.paths, (".jsonl", ".parquet"))
        memo = (self.cache_dir or default_cache_dir()) / "hashes"
        settings = (
            FORMAT,
            self.lengths,
            self.task,
            self.num_rows,
            self.question_column,
            self.answers_column,
            self.paragraphs_column,
            self.max_gen_tokens,
            self.template,
            self.seed,
            self.on_long_row,
            self.on_bad_row,
            tokenizer.fingerprint,
            [
                (name, file_hash(Path(file), memo))
                for name, file in zip(short_names(files), files, strict=True)
            ],
        )
        return hashlib.blake2b(repr(settings).encode(), digest_size=16).hexdigest()

    def rows(self, tokenizer: Tokenizer) -> list[TaskRow]:
        """The rows of every length, from the cache if they were made before.

        Raises:
            DataError: a row cannot be used, or no row is left for a length.
        """
        made = cached_rows(
            self.fingerprint(tokenizer),
            self.cache_dir or default_cache_dir(),
            lambda: self._make(tokenizer),
            self.notify,
            f"rows of {self.label}",
        )
        self.notes = made.notes
        return made.rows

    def _make(self, tokenizer: Tokenizer) -> MadeRows:
        questions = self._questions()
        pool = list(dict.fromkeys(p for question in questions for p in question.paragraphs))
        rows: list[TaskRow] = []
        notes: list[str] = []
        if self.skipped_rows:
            notes.append(f"skipped rows: {self.skipped_rows:,}; the first was {self.first_skipped}")
        for length in self.lengths:
            made, long_rows, exhausted = self._of_length(tokenizer, questions, pool, length)
            rows += made
            at = f"{self.task} at {length:,} tokens"
            if long_rows:
                notes.append(
                    f"{at}: {long_rows:,} questions left out, their own paragraphs do not fit"
                )
            if self.num_rows is not None and len(made) < self.num_rows:
                notes.append(f"{at}: {len(made):,} rows instead of {self.num_rows:,}, no more fit")
            if exhausted:
                notes.append(
                    f"{at}: {exhausted:,} rows hold all {len(pool):,} paragraphs that there are, "
                    "and could hold more"
                )
        return MadeRows(rows, notes)

    def _of_length(
        self, tokenizer: Tokenizer, questions: Sequence[Question], pool: list[str], length: int
    ) -> tuple[list[TaskRow], int, int]:
        """The rows, the number of those left out, and of those that no paragraph is left for."""
        rows: list[TaskRow] = []
        long_rows = exhausted = guess = 0
        limit = length - self.max_gen_tokens
        for question in questions:
            if len(rows) == self.num_rows:
                break
            documents = Documents(
                question, pool, Draws(self.seed, self.task, length, question.name)
            )

            def prompt(others: int, q: Question = question, d: Documents = documents) -> str:
                return self._prompt(q.question, d.with_others(others))

            bare = len(tokenizer.encode(prompt(0)))
            if bare > limit:
                self._long_row(question, bare, length)
                long_rows += 1
                continue
            guess = most_that_fits(
                lambda n, text=prompt: len(tokenizer.encode(text(n))),  # type: ignore[misc]
                limit,
                documents.num_others,
                guess,
            )
            exhausted += guess == documents.num_others
            rows.append(
                TaskRow(
                    id=f"{self.task}/{length}/{question.name}-{self.seed}",
                    task=self.task,
                    prompt=prompt(guess),
                    answers=question.answers,
                    max_gen_tokens=self.max_gen_tokens,
                    length=length,
                )
            )
        if not rows:
            raise DataError(
                f"no question fits {length:,} tokens with its own paragraphs",
                where=self.label,
                way_out="longer lengths",
            )
        return rows, long_rows, exhausted

    def _long_row(self, question: Question, tokens: int, length: int) -> None:
        if self.on_long_row == "error":
            raise DataError(
                f"the paragraphs of a question make {tokens:,} tokens, and with max_gen_tokens "
                f"{self.max_gen_tokens} more than {length:,}",
                where=f"{question.name}: {question.question!r:.60}",
                way_out="longer lengths, or leave such rows out with on_long_row: skip",
            )

    def _prompt(self, question: str, documents: Sequence[str]) -> str:
        numbered = (f"Document {i}:\n{text}" for i, text in enumerate(documents, start=1))
        before, _, after = self.template.partition("{documents}")
        parts = [part.replace("{question}", question) for part in (before, after)]
        return "\n\n".join(numbered).join(parts)

    def _questions(self) -> list[Question]:
        self.skipped_rows, self.first_skipped = 0, None
        files = find_files(self.paths, (".jsonl", ".parquet"))
        wanted = [self.question_column, self.paragraphs_column]
        wanted += [self.answers_column] if self.answers_column else ANSWER_COLUMNS
        questions = []
        for file, name in zip(files, short_names(files), strict=True):
            for named in named_rows(self, file, wanted):
                question = self._question(named, f"{name}/{named.number}")
                if question is not None:
                    questions.append(question)
        if not questions:
            what = f"{self.label} holds no question"
            if self.skipped_rows:
                what += f": all {self.skipped_rows} rows were skipped"
            raise DataError(what, where=self.first_skipped, allowed="at least one row")
        return questions

    def _question(self, named: NamedRow, name: str) -> Question | None:
        """The question of a row, or None after a report."""
        text = text_of(self, named, self.question_column, "question_column")
        if text is None:
            return None
        columns = [self.answers_column] if self.answers_column else list(ANSWER_COLUMNS)
        column = next((c for c in columns if c in named.columns), None)
        for needed, setting in (
            (column or columns[0], "answers_column"),
            (self.paragraphs_column, "paragraphs_column"),
        ):
            if needed not in named.columns:
                missing_column(self, named, needed, setting)
                return None
        answers = answers_of(self, named, column or columns[0])
        paragraphs = self._paragraphs(named) if answers is not None else None
        if answers is None or paragraphs is None:
            return None
        return Question(name, text, answers, paragraphs)

    def _paragraphs(self, named: NamedRow) -> tuple[str, ...] | None:
        column = self.paragraphs_column
        value: Any = named.values[column]
        found: list[str] = []
        for entry in value if isinstance(value, list) else [value]:
            parts = [entry.get("title"), entry.get("text")] if isinstance(entry, dict) else [entry]
            if isinstance(entry, dict) and not parts[0]:
                parts = parts[1:]  # a title may be missing
            texts = [self.usable_text(part, column, named.where) for part in parts]
            if None in texts:
                return None
            found.append("\n".join(str(text).strip() for text in texts).strip())
        if not found or not all(found):
            self.bad_row(
                f"column {column!r} holds no paragraph, or an empty one",
                where=named.where,
                allowed="a list of texts, or of {title: ..., text: ...}",
            )
            return None
        return tuple(found)


class Documents:
    """The paragraphs of a question among others, in an order that further ones do not change.

    Args:
        question: its own paragraphs always belong.
        pool: different paragraphs, of all questions.
        draws: chooses the others and the order.
    """

    def __init__(self, question: Question, pool: Sequence[str], draws: Draws) -> None:
        own = dict.fromkeys(question.paragraphs)
        self.num_others = len(pool) - len(own)
        self._own = own
        self._pool = pool
        self._draws = draws
        self._placed = [(draws.real(), paragraph) for paragraph in own]
        self._used: set[int] = set()

    def with_others(self, number: int) -> list[str]:
        """The question's own paragraphs and the first ``number`` of the others, mixed."""
        wanted = len(self._own) + number
        while len(self._placed) < wanted:
            index = self._draws.below(len(self._pool))
            if index not in self._used:
                self._used.add(index)
                if self._pool[index] not in self._own:
                    self._placed.append((self._draws.real(), self._pool[index]))
        return [paragraph for _, paragraph in sorted(self._placed[:wanted])]
