"""The rows of one data set: encoded, counted, and cut into batches."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Sequence

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import Dataset

from refine_pl.data.cache_files import digest_of
from refine_pl.data.loader import BatchKey, TokenSequence, collate
from refine_pl.data.tasks.encoding import Encoding, TaskTokens, encode_rows
from refine_pl.data.tasks.generated import rows_hash
from refine_pl.errors import DataError
from refine_pl.randomness import stream_seed
from refine_pl.task_records import TaskBatch, TaskRow
from refine_pl.tokenizers import Tokenizer

_SLOW_CHARACTERS = 10**7  # to tokenize, so that people should know why they wait


class TaskSet(Dataset[list[tuple[int, TaskTokens]]]):
    """The encoded rows of one data set.

    Args:
        name: of the set. In ``training`` rows are numbered within their batch, otherwise by their
            ids; in ``training`` and ``validation`` answers are encoded, if every row has one.
        rows: as text.
        notes: what people should know about them.
        tokenizer: text to ids.
        encoding: how rows become ids.

    Raises:
        DataError: a row cannot be encoded.
        ConfigError: an end of text is asked for that the tokenizer does not have.
    """

    def __init__(
        self,
        name: str,
        rows: Sequence[TaskRow],
        notes: list[str],
        tokenizer: Tokenizer,
        encoding: Encoding,
    ) -> None:
        if sum(len(row.prompt) for row in rows) >= _SLOW_CHARACTERS:
            rank_zero_info(f"Tokenizing {len(rows):,} rows with {tokenizer.label}.")
        self.name = name
        self.notes = notes
        self.without_answers = [row.id for row in rows if not row.answers]
        answers = name in ("training", "validation") and not self.without_answers
        self.rows = list(encode_rows(tokenizer, rows, encoding, with_answers=answers))
        limits = (encoding.max_prompt_tokens, encoding.over_long)
        answer_settings = (encoding.answer_separator, encoding.answer_eos) if answers else ()
        chat = () if encoding.chat is None else (encoding.chat.fingerprint,)
        self.content_hash = digest_of(
            rows_hash(rows), tokenizer.fingerprint, limits, answer_settings, *chat
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: BatchKey) -> list[tuple[int, TaskTokens]]:
        rows = [self.rows[index] for index in key.indices]
        return list(zip(key.rows, rows, strict=True)) if self.name == "training" else numbered(rows)

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt, after cutting."""
        return max(len(tokens.prompt) for tokens in self.rows)

    def refuse_unanswered(self) -> None:
        """Raise a DataError if a row has no answers."""
        if self.without_answers:
            raise DataError(
                f"{len(self.without_answers):,} of {len(self):,} {self.name} rows have no answers "
                "to be scored by",
                where=f"data.{self.name}, row {self.without_answers[0]}",
                way_out="leave them out (on_bad_row: skip), or answer them with refine-pl predict",
            )

    def describe(self) -> dict[str, int]:
        """Counts, for logs and reports."""
        return {
            "rows": len(self),
            "prompt_tokens": sum(len(tokens.prompt) for tokens in self.rows),
            "longest_prompt": self.longest_prompt,
            "cut_rows": sum(tokens.cut_tokens > 0 for tokens in self.rows),
            "cut_tokens": sum(tokens.cut_tokens for tokens in self.rows),
            "rows_without_answers": len(self.without_answers),
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
            lines.append(f"{len(self.without_answers):,} rows without answers")
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
        return (collate_tasks(numbered(batch)) for batch in self._batches)


def numbered(rows: Sequence[TaskTokens]) -> list[tuple[int, TaskTokens]]:
    """Rows with numbers of their own, whatever batch they are in."""
    return [(stream_seed(tokens.row.id), tokens) for tokens in rows]


def collate_tasks(items: Sequence[tuple[int, TaskTokens]]) -> TaskBatch:
    """Numbered rows, at least one, as a batch padded on the right; answers if every row has one."""

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
        turn_ends=tuple(tokens.turn_end for tokens in rows),
    )
