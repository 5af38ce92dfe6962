"""Continuing prompts: one pass over them, then one token a step from their states.

Memory is constant per token: a step reads the state and the last token, never the prompt again.

Letters: ``B`` prompts, ``R = B * copies`` rows (the copies of a prompt follow one another), ``M``
rows that are still going on, ``L`` tokens of the longest continuation, ``V`` tokens of the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from refine_pl.backbones.base import FastWeightLM, State, text_part
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch
from refine_pl.sampling import narrowed, sample_tokens

Finish = Literal["eos", "stop", "length"]

Choose = Callable[[Tensor, Tensor, int], Tensor]
"""``choose(logits [M, V], rows [M], step) -> tokens [M]``; ``rows`` are numbers below ``R``."""

IsStopped = Callable[[int, Sequence[int]], bool]
"""``is_stopped(row, tokens)``: whether the row ends after these tokens; never asked after the
end-of-text token."""


@dataclass(frozen=True, slots=True)
class Continuations:
    """What followed each prompt."""

    tokens: Tensor  # [R, L] int64; after num_tokens anything
    num_tokens: Tensor  # [R] int64, the end-of-text token included
    logprobs: Tensor  # [R, L] float32 of the tokens under the policy, temperature 1
    finish: tuple[Finish, ...]  # R, what ended each row; length: its budget

    def row(self, index: int) -> list[int]:
        """The tokens of one row."""
        numbers: list[int] = self.tokens[index, : int(self.num_tokens[index])].tolist()
        return numbers

    def spoken(self, index: int) -> list[int]:
        """The tokens of one row that stand for text: the end-of-text token is left out."""
        return self.row(index)[: -1 if self.finish[index] == "eos" else None]


@dataclass(slots=True)
class _Row:
    """One continuation in the making."""

    number: int
    budget: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Finish = "length"
    runs: bool = True


@torch.no_grad()
def continue_prompts(
    policy: FastWeightLM,
    prompts: Batch,
    budgets: Tensor,
    *,
    copies: int = 1,
    eos_token_id: int | None,
    ends: Iterable[int | None] = (),
    choose: Choose,
    is_stopped: IsStopped | None = None,
    prompts_at_once: int | None = None,
) -> Continuations:
    """Continue every prompt until it ends by itself, is stopped, or has used its budget.

    Rows that are finished leave the batch. A row's tokens depend on no other row, but for the
    rounding of batched products.

    Args:
        policy: the model that continues.
        prompts: ``B`` prompts of any lengths, each of at least one token.
        budgets: ``[B]`` int64, the most tokens of a continuation.
        copies: continuations of each prompt; they share its state until they have diverged.
        eos_token_id: ends a row; None: only stops and budgets do. Where the model's configuration
            lists several ids as ``eos_token_id``, each of them ends a row too.
        ends: further ids that end a row, as those of a chat's turns.
        choose: picks the next tokens.
        is_stopped: ends a row early.
        prompts_at_once: prompts that are read and continued together, to save memory; all if left
            out.

    Raises:
        ValueError: a prompt has no tokens.
    """
    if bool((prompts.num_tokens < 1).any()):
        raise ValueError("a prompt has no tokens: there is nothing to continue")
    listed = text_part(policy.config()).get("eos_token_id")
    ends = {eos_token_id, *ends, *(listed if isinstance(listed, list) else ())}

    def add(row: _Row, token: int, logprob: float) -> None:
        row.tokens.append(token)
        row.logprobs.append(logprob)
        if token in ends:
            row.finish, row.runs = "eos", False
        elif is_stopped is not None and is_stopped(row.number, row.tokens):
            row.finish, row.runs = "stop", False
        else:
            row.runs = len(row.tokens) < row.budget

    limits = budgets.repeat_interleave(copies).tolist()
    rows = [_Row(number, limit, runs=limit > 0) for number, limit in enumerate(limits)]
    size = prompts_at_once or max(len(prompts), 1)
    for start in range(0, len(prompts), size):
        part = rows[start * copies : (start + size) * copies]
        _continue(policy, prompts.narrow(start, start + size), copies, part, choose, add)
    device = prompts.tokens.device
    tokens = [torch.tensor(row.tokens, dtype=torch.int64) for row in rows]
    logprobs = [torch.tensor(row.logprobs) for row in rows]
    return Continuations(
        pad_sequence(tokens, batch_first=True).to(device),
        torch.tensor([len(row.tokens) for row in rows], device=device),
        pad_sequence(logprobs, batch_first=True).to(device),
        tuple(row.finish for row in rows),
    )


def _continue(
    policy: FastWeightLM,
    prompts: Batch,
    copies: int,
    rows: Sequence[_Row],
    choose: Choose,
    add: Callable[[_Row, int, float], None],
) -> None:
    """Fill the ``rows``, the copies of each prompt one after the other."""
    if not any(row.runs for row in rows):
        return
    device = prompts.tokens.device
    output = policy(prompts.tokens, prompts.num_tokens)
    last = output.hidden[torch.arange(len(prompts), device=device), prompts.num_tokens - 1]
    state = output.state if copies == 1 else output.state.fork(copies)
    rows, hidden, state = _running(rows, last.repeat_interleave(copies, 0), state)
    for step in count():
        logits = policy.head(hidden, logits=True).logits
        numbers = torch.tensor([row.number for row in rows], device=device)
        token = choose(logits, numbers, step)
        logprob = logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]
        for one in zip(rows, token.tolist(), logprob.tolist(), strict=True):
            add(*one)
        if not any(row.runs for row in rows):
            return
        rows, token, state = _running(rows, token, state)
        output = policy(token[:, None], state=state)
        hidden, state = output.hidden[:, 0], output.state


def _running(
    rows: Sequence[_Row], values: Tensor, state: State
) -> tuple[Sequence[_Row], Tensor, State]:
    """The rows that go on, with a value ``[M, ...]`` and a state each."""
    keep = [i for i, row in enumerate(rows) if row.runs]
    if len(keep) == len(rows):
        return rows, values, state
    index = torch.tensor(keep, device=values.device)
    return [rows[i] for i in keep], values[index], state.select(index)


# How the next token is picked


def greedy(logits: Tensor, rows: Tensor, step: int) -> Tensor:
    """The most likely token of each row, ``[M]`` int64; the first one of equals."""
    return logits.argmax(-1)


def sampling(
    generator: RowRandom,
    length: int,
    *,
    copies: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Choose:
    """Samples by inverse transform, from numbers that belong to the prompt and the step.

    Hence a row draws the same tokens in any batch, and whichever other rows have finished.

    Args:
        generator: of the ``B`` prompts.
        length: steps that may be taken.
        copies: rows of each prompt.
        temperature: that logits are divided by.
        top_k: only this number of most likely tokens.
        top_p: only the most likely tokens that together have this probability.
    """
    uniform = generator.rand(length, copies).transpose(1, 2).flatten(0, 1)  # [R, length]

    def choose(logits: Tensor, rows: Tensor, step: int) -> Tensor:
        numbers = uniform[rows.cpu(), step].to(logits.device)
        return sample_tokens(narrowed(logits, temperature, top_k, top_p), numbers)

    return choose
