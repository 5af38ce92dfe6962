"""The rows of one stage: read from their sources, checked, encoded, and counted."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset

from refine_pl.data.collate import Row, collate
from refine_pl.data.loader import BatchKey
from refine_pl.data.tasks.base import TaskSource, rows_hash
from refine_pl.data.tasks.encoding import EncodedRow, Encoding, encode_rows
from refine_pl.errors import DataError
from refine_pl.randomness import stream_seed
from refine_pl.task_records import TaskBatch, TaskRow
from refine_pl.tokenizers import Tokenizer

_SLOW_CHARACTERS = 10**7  # to tokenize, so that people should know why they wait


@dataclass(frozen=True, slots=True)
class SourceRows:
    """Rows as text, and what people should know about them."""

    rows: list[TaskRow]
    notes: list[str]


def read_sources(
    sources: Mapping[str, TaskSource],
    tokenizer: Tokenizer,
    cache_dir: Path | None,
    notify: Callable[[str], None],
    budget: int | None = None,
) -> SourceRows:
    """The rows of several sources, in the order of the sources.

    Args:
        sources: by name.
        tokenizer: what lengths are counted with.
        cache_dir: where generated rows are kept.
        notify: receives a line when something slow is about to begin.
        budget: tokens that an answer may have, instead of each row's own number.

    Raises:
        DataError: a row cannot be used, or two rows have one id.
    """
    rows: list[TaskRow] = []
    notes: list[str] = []
    owner: dict[str, str] = {}
    for name, source in sources.items():
        source.cache_dir, source.notify = cache_dir, notify
        for row in source.rows(tokenizer):
            if row.id in owner:
                raise DataError(
                    f"two rows have the id {row.id!r}",
                    where=f"source {owner[row.id]!r}, and source {name!r} ({source.label})",
                    allowed="an id of its own for each row: it names the row's random numbers and "
                    "its answer",
                    way_out="another task, length, seed, file name or id_column for one of them",
                )
            owner[row.id] = name
            rows.append(row if budget is None else row._replace(max_gen_tokens=budget))
        notes += [f"{name}: {note}" for note in source.notes]
    return SourceRows(rows, notes)


class TaskSet(Dataset[list[tuple[int, EncodedRow]]]):
    """The encoded rows of one stage.

    Args:
        source: the rows as text.
        tokenizer: text to ids.
        encoding: how rows become ids.
        training: number rows within their batch; otherwise by their ids.
        with_answers: also encode answers, if every row has one.
        notify: receives a line when something slow is about to begin.

    Raises:
        DataError: a row cannot be encoded.
        ConfigError: an end of text is asked for that the tokenizer does not have.
    """

    def __init__(
        self,
        source: SourceRows,
        tokenizer: Tokenizer,
        encoding: Encoding,
        *,
        training: bool,
        with_answers: bool,
        notify: Callable[[str], None],
    ) -> None:
        if sum(len(row.prompt) for row in source.rows) >= _SLOW_CHARACTERS:
            notify(f"Tokenizing {len(source.rows):,} rows with {tokenizer.label}.")
        self.training = training
        self.notes = source.notes
        self.without_answers = sum(not row.answers for row in source.rows)
        answers = with_answers and not self.without_answers
        self.rows = list(encode_rows(tokenizer, source.rows, encoding, with_answers=answers))
        _check_ids(self.rows, tokenizer)
        limits = (encoding.max_prompt_tokens, encoding.over_long)
        if answers:
            limits += (encoding.answer_separator, encoding.answer_eos)  # type: ignore[assignment]
        made_from = (rows_hash(source.rows), tokenizer.fingerprint, limits)
        self.content_hash = hashlib.blake2b(repr(made_from).encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: BatchKey) -> list[tuple[int, EncodedRow]]:
        return [
            (number, self.rows[index]) if self.training else numbered(self.rows[index])
            for index, number in zip(key.indices, key.rows, strict=True)
        ]

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt, after cutting."""
        return max(len(row.prompt) for row in self.rows)

    def describe(self) -> dict[str, int]:
        """Counts, for logs and reports."""
        return {
            "rows": len(self.rows),
            "prompt_tokens": sum(len(row.prompt) for row in self.rows),
            "longest_prompt": self.longest_prompt,
            "cut_rows": sum(row.cut_tokens > 0 for row in self.rows),
            "cut_tokens": sum(row.cut_tokens for row in self.rows),
            "rows_without_answers": self.without_answers,
        }

    def summary(self) -> list[str]:
        """One line for each task and length, and the sources' notes."""
        groups: dict[tuple[str, int], list[EncodedRow]] = {}
        for encoded in self.rows:
            groups.setdefault((encoded.row.task, encoded.row.length or 0), []).append(encoded)
        lines = []
        for (task, length), rows in groups.items():
            tokens = [len(row.prompt) for row in rows]
            cut = [row.cut_tokens for row in rows if row.cut_tokens]
            lines.append(
                f"{task}{f' at {length:,} tokens' if length else ''}: {len(rows):,} rows, prompts "
                f"of {min(tokens):,} to {max(tokens):,} tokens, median "
                f"{statistics.median_low(tokens):,}"
                + (f"; {len(cut):,} cut in the middle, by up to {max(cut):,}" if cut else "")
            )
        if self.without_answers:
            lines.append(f"{self.without_answers:,} rows without answers")
        return lines + self.notes


class WholeBatches:
    """The batches of one rank, each with all of its rows: rank r of R has batches r, r + R, ...

    Batches are cut before any row is left out, so that those that are left hold the same rows as
    in a run that was not interrupted.

    Args:
        rows: encoded.
        batch_size: rows of a batch, on one rank.
        rank: of this process.
        num_ranks: processes.
        skip: ids of rows that are left out; a batch of none but these is left out too.
    """

    def __init__(
        self,
        rows: Sequence[EncodedRow],
        batch_size: int,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        skip: Iterable[str] = (),
    ) -> None:
        left_out = frozenset(skip)
        batches = [
            [row for row in rows[start : start + batch_size] if row.row.id not in left_out]
            for start in range(0, len(rows), batch_size)
        ]
        self._batches = [batch for batch in batches if batch][rank::num_ranks]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[TaskBatch]:
        for batch in self._batches:
            yield collate_tasks([numbered(row) for row in batch])


def numbered(row: EncodedRow) -> tuple[int, EncodedRow]:
    """A row with a number of its own, whatever batch it is in."""
    return stream_seed(row.row.id), row


def collate_tasks(items: Sequence[tuple[int, EncodedRow]]) -> TaskBatch:
    """Numbered rows as one batch, padded on the right; answers if every row has one.

    Args:
        items: numbers and rows, at least one.
    """
    rows = [row for _, row in items]
    prompts = collate([_to_row(number, row, row.prompt) for number, row in items])
    answered = answer_start = None
    if all(row.answered is not None for row in rows):
        answered = collate([_to_row(number, row, row.answered) for number, row in items])
        answer_start = torch.tensor([row.answer_start for row in rows], dtype=torch.int64)
    return TaskBatch(
        prompts=prompts,
        task_rows=tuple(row.row for row in rows),
        cut_tokens=tuple(row.cut_tokens for row in rows),
        answered=answered,
        answer_start=answer_start,
    )


def _to_row(number: int, row: EncodedRow, ids: object) -> Row:
    return Row(torch.as_tensor(ids, dtype=torch.int64), number, row.row.id)


def _check_ids(rows: Sequence[EncodedRow], tokenizer: Tokenizer) -> None:
    for row in rows:
        ids = row.prompt if row.answered is None else row.answered
        if not 0 <= int(ids.min()) <= int(ids.max()) < tokenizer.vocab_size:
            raise DataError(
                f"the tokenizer made ids from {ids.min()} to {ids.max()}",
                where=f"{tokenizer.label}, row {row.row.id}",
                allowed=f"0 to {tokenizer.vocab_size - 1}, by its own vocab_size",
            )
