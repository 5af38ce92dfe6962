"""Continuing prompts: one pass over them, then one token a step from their states.

Memory is constant per token: a step reads the state and the last token, never the prompt again.

Letters: ``B`` prompts, ``R = B * copies`` rows (the copies of a prompt follow one another), ``M``
rows that are still going on, ``L`` tokens of the longest continuation, ``V`` tokens of the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from refine_pl.backbones.base import FastWeightLM, State
from refine_pl.records import Batch

Finish = Literal["eos", "stop", "length"]

Choose = Callable[[Tensor, Tensor, int], Tensor]
"""``choose(logits [M, V], rows [M], step) -> tokens [M]``; ``rows`` are numbers below ``R``."""

IsStopped = Callable[[int, Sequence[int]], bool]
"""``is_stopped(row, tokens)``: whether the row ends after these tokens; never asked after the
end-of-text token."""

OnStep = Callable[[int], None]
"""``on_step(M)``: called after each step with the number of tokens that it made."""


@dataclass(frozen=True, slots=True)
class Continuations:
    """What followed each prompt."""

    tokens: Tensor  # [R, L] int64; behind num_tokens anything
    num_tokens: Tensor  # [R] int64, the end-of-text token included
    logprobs: Tensor  # [R, L] float32 of the tokens under the policy, temperature 1
    finish: tuple[Finish, ...]  # R, what ended each row; length: its budget

    def row(self, index: int) -> list[int]:
        """The tokens of one row."""
        numbers: list[int] = self.tokens[index, : int(self.num_tokens[index])].tolist()
        return numbers


@torch.no_grad()
def continue_prompts(
    policy: FastWeightLM,
    prompts: Batch,
    budgets: Tensor,
    *,
    copies: int = 1,
    eos_token_id: int | None,
    choose: Choose,
    is_stopped: IsStopped | None = None,
    on_step: OnStep | None = None,
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
        eos_token_id: ends a row; None: only stops and budgets do.
        choose: picks the next tokens.
        is_stopped: ends a row early.
        on_step: called after each step.
        prompts_at_once: read and continue so many prompts together, to save memory; all if left
            out.

    Raises:
        ValueError: a prompt has no tokens.
    """
    if bool((prompts.num_tokens < 1).any()):
        raise ValueError("a prompt has no tokens: there is nothing to continue")
    rules = _Rules(eos_token_id, choose, is_stopped, on_step)
    size = prompts_at_once or max(len(prompts), 1)
    rows: list[_Row] = []
    for start in range(0, len(prompts), size):
        limits = budgets[start : start + size].repeat_interleave(copies).tolist()
        first = len(rows)
        rows += [_Row(first + i, limit) for i, limit in enumerate(limits)]
        _continue(policy, prompts.narrow(start, start + size), copies, rows[first:], rules)
    return _collected(rows, prompts.tokens.device)


class _Row:
    """One continuation in the making."""

    __slots__ = ("finish", "limit", "logprobs", "number", "tokens")

    def __init__(self, number: int, limit: int) -> None:
        self.number, self.limit = number, limit
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.finish: Finish | None = None if limit > 0 else "length"


@dataclass(frozen=True, slots=True)
class _Rules:
    """How the next token is picked, and when a row ends."""

    eos_token_id: int | None
    choose: Choose
    is_stopped: IsStopped | None
    on_step: OnStep | None

    def finish(self, row: _Row) -> Finish | None:
        if row.tokens[-1] == self.eos_token_id:
            return "eos"
        if self.is_stopped is not None and self.is_stopped(row.number, row.tokens):
            return "stop"
        return "length" if len(row.tokens) == row.limit else None


def _continue(
    policy: FastWeightLM, prompts: Batch, copies: int, rows: Sequence[_Row], rules: _Rules
) -> None:
    """Fill the ``rows``, the copies of each prompt one after the other."""
    device = prompts.tokens.device
    running = [row for row in rows if row.finish is None]
    if not running:
        return
    hidden, state = _read(policy, prompts, copies)
    if len(running) < len(rows):
        index = torch.tensor([i for i, row in enumerate(rows) if row.finish is None], device=device)
        hidden, state = hidden[index], state.select(index)
    step = 0
    while True:
        logits = policy.head(hidden, logits=True).logits
        numbers = torch.tensor([row.number for row in running], device=device)
        token = rules.choose(logits, numbers, step)
        logprob = logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]
        for row, new, value in zip(running, token.tolist(), logprob.tolist(), strict=True):
            row.tokens.append(new)
            row.logprobs.append(value)
            row.finish = rules.finish(row)
        if rules.on_step is not None:
            rules.on_step(len(running))
        keep = [i for i, row in enumerate(running) if row.finish is None]
        if not keep:
            return
        if len(keep) < len(running):
            index = torch.tensor(keep, device=device)
            token, state = token[index], state.select(index)
            running = [running[i] for i in keep]
        output = policy(token[:, None], state=state)
        hidden, state = output.hidden[:, 0], output.state
        step += 1


def _read(policy: FastWeightLM, prompts: Batch, copies: int) -> tuple[Tensor, State]:
    """Hidden states ``[R, D]`` of the prompts' last tokens, and the states after them."""
    output = policy(prompts.tokens, prompts.num_tokens)
    number = torch.arange(len(prompts), device=prompts.tokens.device)
    last = output.hidden[number, prompts.num_tokens - 1]
    state = output.state if copies == 1 else output.state.fork(copies)
    return last.repeat_interleave(copies, 0), state


def _collected(rows: Sequence[_Row], device: torch.device) -> Continuations:
    num_tokens = torch.tensor([len(row.tokens) for row in rows], dtype=torch.int64)
    length = max((len(row.tokens) for row in rows), default=0)
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    logprobs = torch.zeros(len(rows), length)
    for i, row in enumerate(rows):
        tokens[i, : len(row.tokens)] = torch.tensor(row.tokens, dtype=torch.int64)
        logprobs[i, : len(row.tokens)] = torch.tensor(row.logprobs)
    finish = tuple(cast(Finish, row.finish) for row in rows)
    return Continuations(tokens.to(device), num_tokens.to(device), logprobs.to(device), finish)
