"""The rows of one data set: read from their sources, checked, encoded, and counted."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset

from refine_pl.data.cache_files import digest_of
from refine_pl.data.loader import BatchKey, TokenSequence, collate
from refine_pl.data.tasks.base import TaskSource, check_unique
from refine_pl.data.tasks.encoding import Encoding, TaskTokens, encode_rows
from refine_pl.data.tasks.generated import rows_hash
from refine_pl.randomness import stream_seed
from refine_pl.task_records import TaskBatch, TaskRow
from refine_pl.tokenizers import Tokenizer

_SLOW_CHARACTERS = 10**7  # to tokenize, so that people should know why they wait


def read_sources(
    sources: Mapping[str, TaskSource],
    tokenizer: Tokenizer,
    cache_dir: Path | None,
    notify: Callable[[str], None],
    budget: int | None = None,
) -> tuple[list[TaskRow], list[str]]:
    """The rows of several sources, in their order, and what people should know about them.

    Args:
        sources: by name.
        tokenizer: what lengths are counted with.
        cache_dir: where generated rows are kept.
        notify: receives a line when something slow is about to begin.
        budget: tokens that an answer may have, instead of each row's own number.

    Raises:
        DataError: a row cannot be used, or two rows have one id.
    """
    notes: list[str] = []

    def read() -> Iterator[tuple[str, TaskRow]]:
        for name, source in sources.items():
            source.cache_dir, source.notify = cache_dir, notify
            for row in source.rows(tokenizer):
                own = row if budget is None else row._replace(max_gen_tokens=budget)
                yield f"source {name!r} ({source.label})", own
            notes.extend(f"{name}: {note}" for note in source.notes)

    way_out = "another task, length, seed, file name or id_column for one of them"
    return check_unique(read(), way_out), notes


class TaskSet(Dataset[list[tuple[int, TaskTokens]]]):
    """The encoded rows of one data set.

    Args:
        rows: as text.
        notes: what people should know about them.
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
        rows: Sequence[TaskRow],
        notes: Sequence[str],
        tokenizer: Tokenizer,
        encoding: Encoding,
        *,
        training: bool,
        with_answers: bool,
        notify: Callable[[str], None],
    ) -> None:
        if sum(len(row.prompt) for row in rows) >= _SLOW_CHARACTERS:
            notify(f"Tokenizing {len(rows):,} rows with {tokenizer.label}.")
        self.training = training
        self.notes = list(notes)
        self.without_answers = sum(not row.answers for row in rows)
        answers = with_answers and not self.without_answers
        self.rows = list(encode_rows(tokenizer, rows, encoding, with_answers=answers))
        limits = (encoding.max_prompt_tokens, encoding.over_long)
        answer_settings = (encoding.answer_separator, encoding.answer_eos) if answers else ()
        self.content_hash = digest_of(
            rows_hash(rows), tokenizer.fingerprint, limits, answer_settings
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: BatchKey) -> list[tuple[int, TaskTokens]]:
        return [
            (number, self.rows[index]) if self.training else numbered(self.rows[index])
            for index, number in zip(key.indices, key.rows, strict=True)
        ]

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt, after cutting."""
        return max(len(tokens.prompt) for tokens in self.rows)

    def describe(self) -> dict[str, int]:
        """Counts, for logs and reports."""
        return {
            "rows": len(self.rows),
            "prompt_tokens": sum(len(tokens.prompt) for tokens in self.rows),
            "longest_prompt": self.longest_prompt,
            "cut_rows": sum(tokens.cut_tokens > 0 for tokens in self.rows),
            "cut_tokens": sum(tokens.cut_tokens for tokens in self.rows),
            "rows_without_answers": self.without_answers,
        }

    def summary(self) -> list[str]:
        """One line for each task and length, and the sources' notes."""
        groups: dict[tuple[str, int], list[TaskTokens]] = {}
        for tokens in self.rows:
            groups.setdefault((tokens.row.task, tokens.row.length or 0), []).append(tokens)
        lines = []
        for (task, length), group in groups.items():
            sizes = [len(tokens.prompt) for tokens in group]
            cut = [tokens.cut_tokens for tokens in group if tokens.cut_tokens]
            lines.append(
                f"{task}{f' at {length:,} tokens' if length else ''}: {len(group):,} rows, prompts "
                f"of {min(sizes):,} to {max(sizes):,} tokens, median "
                f"{statistics.median_low(sizes):,}"
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
        rows: Sequence[TaskTokens],
        batch_size: int,
        rank: int,
        num_ranks: int,
        skip: Collection[str],
    ) -> None:
        cut = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
        left = ([tokens for tokens in batch if tokens.row.id not in skip] for batch in cut)
        self._batches = [batch for batch in left if batch][rank::num_ranks]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[TaskBatch]:
        return (collate_tasks([numbered(tokens) for tokens in batch]) for batch in self._batches)


def numbered(tokens: TaskTokens) -> tuple[int, TaskTokens]:
    """A row with a number of its own, whatever batch it is in."""
    return stream_seed(tokens.row.id), tokens


def collate_tasks(items: Sequence[tuple[int, TaskTokens]]) -> TaskBatch:
    """Numbered rows as one batch, padded on the right; answers if every row has one.

    Args:
        items: numbers and rows, at least one.
    """

    def sequence(number: int, tokens: TaskTokens, ids: object) -> TokenSequence:
        return TokenSequence(torch.as_tensor(ids, dtype=torch.int64), number, tokens.row.id)

    rows = [tokens for _, tokens in items]
    answered = answer_start = None
    if all(tokens.answered is not None for tokens in rows):
        answered = collate([sequence(number, tokens, tokens.answered) for number, tokens in items])
        answer_start = torch.tensor([tokens.answer_start for tokens in rows], dtype=torch.int64)
    return TaskBatch(
        prompts=collate([sequence(number, tokens, tokens.prompt) for number, tokens in items]),
        task_rows=tuple(tokens.row for tokens in rows),
        cut_tokens=tuple(tokens.cut_tokens for tokens in rows),
        answered=answered,
        answer_start=answer_start,
    )
