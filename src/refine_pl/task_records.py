"""The records of tasks: a question as text, a batch of them as tokens, and what a model answered.

Letters: ``B`` rows, ``P`` tokens of the longest prompt, ``A`` of the longest prompt with its
answer. Sequences are padded on the right, as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from refine_pl.records import Batch, Rows


class TaskRow(NamedTuple):
    """One question with its answers, as text."""

    id: str  # unique within a set of rows; names the row's random streams
    task: str  # names the rule that scores it, for example "qasper"
    prompt: str
    answers: tuple[str, ...]  # references, any of which is right; empty where there are none
    max_gen_tokens: int  # the most tokens that an answer may have
    length: int | None = None  # of the set that the row belongs to, tokens; for tables


@dataclass(slots=True)  # not frozen: Lightning sets the fields of a batch when it converts them
class TaskBatch(Rows):
    """Questions as tokens, and the same continued by their first answer."""

    prompts: Batch  # [B, P]
    task_rows: tuple[TaskRow, ...]  # B
    cut_tokens: tuple[int, ...]  # B, tokens taken out of the middle of each prompt
    answered: Batch | None = None  # [B, A] prompts and answers; None unless every row has an answer
    answer_start: Tensor | None = None  # [B] int64, index of the first answer token in ``answered``
    turn_ends: tuple[int | None, ...] = ()  # B ids that end answers beside the end-of-text token

    def __len__(self) -> int:
        return len(self.task_rows)


class Answer(NamedTuple):
    """What a model answered to one row."""

    row: TaskRow
    text: str  # up to the first stop string, end of text left out
    num_tokens: int  # generated, the end-of-text token included
    prompt_tokens: int  # read
    cut_tokens: int  # taken out of the middle of the prompt
    finish: Literal["eos", "stop", "length"]  # what ended it; length: the row's budget
