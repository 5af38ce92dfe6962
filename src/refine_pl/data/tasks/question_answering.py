"""Questions about many documents (RULER), made of questions that come with their paragraphs.

The paragraphs that answer a question stand between paragraphs of other questions, as many as fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import PositiveInt

from refine_pl.data.cache_files import file_hash
from refine_pl.data.file_records import FileReader, FileRecord, OnBadRow, answer_columns
from refine_pl.data.paths import shown_paths
from refine_pl.data.tasks.draws import Draws
from refine_pl.data.tasks.generated import GeneratedRows, fill
from refine_pl.errors import ConfigError, DataError
from refine_pl.task_records import TaskRow
from refine_pl.tokenizers import Tokenizer

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


@dataclass
class MultiDocumentQA(FileReader, GeneratedRows):
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

    paths: str | list[str]
    lengths: list[PositiveInt]
    task: str = "ruler_squadqa"
    num_rows: PositiveInt | None = None
    question_column: str = "question"
    answers_column: str | None = None
    paragraphs_column: str = "paragraphs"
    max_gen_tokens: PositiveInt = 32
    template: str = TEMPLATE
    seed: int = 0
    on_long_row: Literal["skip", "error"] = "skip"
    on_bad_row: OnBadRow = "error"

    suffixes = (".jsonl", ".parquet")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_lengths(self.max_gen_tokens + 1, ", more than max_gen_tokens")
        for field in ("{documents}", "{question}"):
            if self.template.count(field) != 1:
                raise ConfigError(
                    f"the template has {field} {self.template.count(field)} times",
                    where="MultiDocumentQA",
                    allowed="{documents} and {question} once each",
                )

    @property
    def label(self) -> str:
        """The task, and the paths as they were given, shortened."""
        return f"MultiDocumentQA {self.task} of {shown_paths(self.paths)}"

    def made_from(self, memo_dir: Path) -> dict[str, Any]:
        """The settings, and the names and bytes of the files."""
        paths = self.named_files()
        files = [(name, file_hash(Path(file), memo_dir)) for name, file in paths.items()]
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        del settings["paths"]
        return settings | {"files": files}

    def make(self, tokenizer: Tokenizer) -> tuple[list[TaskRow], list[str]]:
        """The rows of every length; raises DataError where none is left for one."""
        rows, notes = self.of_questions(tokenizer, list(self.counted(self._read, "question")))
        return rows, self.skip_notes() + notes

    def of_questions(
        self,
        tokenizer: Tokenizer,
        questions: Sequence[Question],
        others: Sequence[Question] = (),
    ) -> tuple[list[TaskRow], list[str]]:
        """The rows of questions that are not read from ``paths``, as :meth:`make`.

        Args:
            tokenizer: what lengths are counted with.
            questions: those to make rows of.
            others: give paragraphs too, but no rows.
        """
        given = (p for question in (*questions, *others) for p in question.paragraphs)
        pool = list(dict.fromkeys(given))
        rows: list[TaskRow] = []
        notes: list[str] = []
        for length in self.lengths:
            made, said = self._of_length(tokenizer, questions, pool, length)
            rows += made
            notes += (f"{self.task} at {length:,} tokens: {note}" for note in said)
        return rows, notes

    def _of_length(
        self, tokenizer: Tokenizer, questions: Sequence[Question], pool: list[str], length: int
    ) -> tuple[list[TaskRow], list[str]]:
        """The rows, and what people should know about them."""
        rows: list[TaskRow] = []
        long_rows = exhausted = guess = 0
        budget = self.max_gen_tokens
        for question in questions:
            if len(rows) == self.num_rows:
                break
            draws = Draws(self.seed, self.task, length, question.name)
            mixture = Mixture(question, pool, draws)
            prompt = partial(self._prompt, question, mixture)
            bare = len(tokenizer.encode(prompt(0)))
            if bare > length - budget:
                if self.on_long_row == "error":
                    raise self._too_long(question, bare, length)
                long_rows += 1
                continue
            text, guess = fill(tokenizer, prompt, length - budget, mixture.num_others, guess)
            exhausted += guess == mixture.num_others
            row_id = f"{self.task}/{length}/{question.name}-{self.seed}"
            rows.append(TaskRow(row_id, self.task, text, question.answers, budget, length))
        if not rows:
            raise DataError(
                f"no question fits {length:,} tokens with its own paragraphs",
                where=self.label,
                way_out="longer lengths",
            )
        notes = []
        if long_rows:
            notes.append(f"{long_rows:,} questions left out, their own paragraphs do not fit")
        if self.num_rows is not None and len(rows) < self.num_rows:
            notes.append(f"{len(rows):,} rows instead of {self.num_rows:,}, no more fit")
        if exhausted:
            notes.append(
                f"{exhausted:,} rows hold all {len(pool):,} paragraphs that there are, and could "
                "hold more"
            )
        return rows, notes

    def _too_long(self, question: Question, tokens: int, length: int) -> DataError:
        return DataError(
            f"the paragraphs of a question make {tokens:,} tokens, and with max_gen_tokens "
            f"{self.max_gen_tokens} more than {length:,}",
            where=f"{question.name}: {question.question!r:.60}",
            way_out="longer lengths, or leave such rows out with on_long_row: skip",
        )

    def _prompt(self, question: Question, mixture: Mixture, others: int) -> str:
        documents = enumerate(mixture.with_others(others), start=1)
        numbered = (f"Document {i}:\n{text}" for i, text in documents)
        before, _, after = self.template.partition("{documents}")
        parts = [part.replace("{question}", question.question) for part in (before, after)]
        return "\n\n".join(numbered).join(parts)

    def _read(self) -> Iterator[Question]:
        columns = [self.question_column, self.paragraphs_column]
        return self.read_files([*columns, *answer_columns(self.answers_column)], self._question)

    def _question(self, name: str, record: FileRecord) -> Question:
        return Question(
            f"{name}/{record.number}",
            record.text(self.question_column, "question_column"),
            record.answers(self.answers_column),
            self._paragraphs(record),
        )

    def _paragraphs(self, record: FileRecord) -> tuple[str, ...]:
        column = self.paragraphs_column
        value = record.value(column, "paragraphs_column")
        found: list[str] = []
        for entry in value if isinstance(value, list) else [value]:
            parts = [entry]
            if isinstance(entry, dict):  # a title may be missing
                title, text = entry.get("title"), entry.get("text")
                parts = [title, text] if title else [text]
            texts = [record.checked_text(part, column).strip() for part in parts]
            found.append("\n".join(texts).strip())
        if not found or not all(found):
            raise record.bad(
                f"column {column!r} holds no paragraph, or an empty one",
                "a list of texts, or of {title: ..., text: ...}",
            )
        return tuple(found)


class Mixture:
    """The paragraphs of a question among others, in an order that further ones do not change.

    ``draws`` chooses the others, from the different paragraphs of all questions, and the order.
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
