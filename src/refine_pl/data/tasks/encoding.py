"""Rows as token ids: the prompt, cut in the middle if it is too long, and its first answer.

A tokenizer may merge the end of a prompt with the beginning of an answer. So prompt and answer are
encoded together, and the context is what both encodings begin with alike: the ids after it are
what a model that continues the prompt's text would have to give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from refine_pl.chat import Chat, common_prefix
from refine_pl.data.token_cache import check_ids, in_groups
from refine_pl.errors import ConfigError, DataError
from refine_pl.task_records import TaskRow
from refine_pl.tokenizers import Tokenizer

Ids = npt.NDArray[np.int32]
OverLong: TypeAlias = Literal["cut_middle", "refuse"]
"""What happens to a prompt of too many tokens."""


@dataclass(frozen=True, slots=True)
class TaskTokens:
    """The ids of a row."""

    row: TaskRow
    prompt: Ids  # [P]
    cut_tokens: int  # taken out of the middle of the prompt
    answered: Ids | None = None  # [A] context, answer, and end of text if asked for
    answer_start: int | None = None  # index of the first answer token in ``answered``
    turn_end: int | None = None  # an id that ends answers beside the end-of-text token


@dataclass(frozen=True, slots=True)
class Encoding:
    """How rows become ids; the arguments are those of :class:`refine_pl.data.TaskData`.

    Args:
        chat: the template that prompts are wrapped in; as they are if None.
    """

    max_prompt_tokens: int | None = None
    over_long: OverLong = "cut_middle"
    answer_separator: str = "auto"
    answer_eos: bool = True
    chat: Chat | None = None

    def prompt(self, row: TaskRow) -> str:
        """What the model is given."""
        return row.prompt if self.chat is None else self.chat.wrap(row.prompt)

    @property
    def turn_end(self) -> int | None:
        """The id that ends an answer beside the end-of-text token; None: no other does."""
        return None if self.chat is None else self.chat.end

    def end(self, tokenizer: Tokenizer) -> int | None:
        """The id after an answer that is trained on."""
        return tokenizer.eos_token_id if self.turn_end is None else self.turn_end


def encode_rows(
    tokenizer: Tokenizer,
    rows: Sequence[TaskRow],
    encoding: Encoding,
    *,
    with_answers: bool = True,
) -> Iterator[TaskTokens]:
    """Rows as ids, in their order; ``with_answers`` also with the first answer, where there is one.

    Raises:
        DataError: a prompt is too long and shall not be cut, or has no token; or an answer adds no
            token to its prompt.
        ConfigError: an end of text is asked for that the tokenizer does not have.
    """
    if with_answers and encoding.answer_eos and encoding.end(tokenizer) is None:
        raise ConfigError(
            f"answers cannot end with an end-of-text token: {tokenizer.label} has none",
            where="data.answer_eos",
            way_out="answer_eos: false, or a tokenizer with an end-of-text token",
        )
    for group in in_groups(rows, lambda row: row.prompt):
        texts = [encoding.prompt(row) for row in group]
        prompts = _encoded(tokenizer, texts)
        pairs = zip(group, texts, strict=True)
        answered = [pair for pair in pairs if with_answers and pair[0].answers]
        wholes = iter(_encoded(tokenizer, [_whole_text(*pair, encoding) for pair in answered]))
        for row, prompt in zip(group, prompts, strict=True):
            whole = next(wholes) if with_answers and row.answers else None
            check_ids(prompt if whole is None else whole, tokenizer, f"row {row.id}")
            yield _cut(tokenizer, row, prompt, whole, encoding)


def _whole_text(row: TaskRow, prompt: str, encoding: Encoding) -> str:
    """The prompt, as the model is given it, continued by the answer that is trained on."""
    answer, separator = trained_answer(row), encoding.answer_separator
    if separator == "auto" and encoding.chat is not None and encoding.chat.separator is not None:
        separator = encoding.chat.separator
    elif separator == "auto":
        separator = "" if prompt[-1:].isspace() or answer[:1].isspace() else " "
    return prompt + separator + answer


def trained_answer(row: TaskRow) -> str:
    """The first answer; for needles all of them, because there every one is asked for."""
    if row.task == "niah" or row.task.startswith("niah_"):
        return ", ".join(row.answers)
    return row.answers[0]


def _cut(
    tokenizer: Tokenizer, row: TaskRow, prompt: Ids, whole: Ids | None, encoding: Encoding
) -> TaskTokens:
    if not len(prompt):
        raise DataError("the prompt has no token", where=f"row {row.id}, {tokenizer.label}")
    limit = encoding.max_prompt_tokens or len(prompt)
    cut_tokens = max(0, len(prompt) - limit)
    if cut_tokens and encoding.over_long == "refuse":
        raise DataError(
            f"the prompt has {len(prompt):,} tokens, more than max_prompt_tokens {limit:,}",
            where=f"row {row.id}",
            way_out=f"max_prompt_tokens: {len(prompt)}, or over_long: cut_middle",
        )
    end = encoding.turn_end
    kept = _without_middle(prompt, limit, row, encoding) if cut_tokens else prompt
    if whole is None:
        return TaskTokens(row, kept, cut_tokens, turn_end=end)
    start = common_prefix(prompt, whole)
    target = whole[start:]
    context = kept[: max(0, len(kept) - (len(prompt) - start))]
    if not len(target) or not len(context):
        raise DataError(
            "the answer adds no token to its prompt"
            if not len(target)
            else "no token of the prompt is left in front of the answer",
            where=f"row {row.id}: prompt ...{row.prompt[-20:]!r}, answer {trained_answer(row)!r}",
            way_out="another answer_separator, or a longer prompt",
        )
    if encoding.answer_eos:
        target = np.append(target, np.int32(encoding.end(tokenizer) or 0))
    answered = np.concatenate([context, target])
    return TaskTokens(row, kept, cut_tokens, answered, len(context), end)


def _without_middle(prompt: Ids, limit: int, row: TaskRow, encoding: Encoding) -> Ids:
    """The ``limit`` ids at both ends of a prompt; a template around it is whole."""
    first, last = (0, 0) if encoding.chat is None else encoding.chat.borders(prompt)
    room = limit - first - last
    if room < 1:
        raise ConfigError(
            f"the chat template alone has {first + last:,} tokens around a prompt",
            where=f"data.max_prompt_tokens: {limit}, row {row.id}",
            way_out="a larger max_prompt_tokens, or chat_template: none",
        )
    rear = last + room // 2
    return np.concatenate([prompt[: limit - rear], prompt[len(prompt) - rear :]])


def _encoded(tokenizer: Tokenizer, texts: list[str]) -> list[Ids]:
    return [ids.astype(np.int32) for ids in tokenizer.encode_batch(texts)] if texts else []
