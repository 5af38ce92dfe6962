"""How a model answers the rows of tasks: decoding, budgets and stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt

from refine_pl.backbones.base import FastWeightLM
from refine_pl.errors import ConfigError
from refine_pl.evaluation.generation import Choose, continue_prompts, greedy, sampling
from refine_pl.evaluation.rules import CUTS
from refine_pl.evaluation.tasks import TASK_RULES, rules_of
from refine_pl.randomness import RowRandom
from refine_pl.task_records import Answer, TaskBatch
from refine_pl.tokenizers import Tokenizer

End = Callable[[str], int | None]
"""Where the part of a text that counts ends, whatever follows; None: not yet."""


class Answering:
    """Answers prompts from their states, all prompts of a batch together.

    A row's answer ends at the end of text, before a stop string, or with its budget. It does not
    depend on the other rows of its batch.

    Args:
        decoding: ``greedy`` takes the most likely token, ``sample`` draws one from the row's own
            stream of random numbers.
        temperature: of ``sample``; 1 if left out.
        top_k: of ``sample``: only this number of most likely tokens; all if left out.
        top_p: of ``sample``: only the most likely tokens that together have this probability.
        budget: the most tokens of every answer; each row's own ``max_gen_tokens`` if left out.
        stop: an answer ends before the first of these texts.
        task_stops: end an answer where its task's rule reads no further. Changes no score.
        prompts_at_once: prompts that are answered together, to save memory; the whole batch if
            left out.

    Raises:
        ConfigError: settings of ``sample`` with ``greedy``, or one that is out of its range.
    """

    def __init__(
        self,
        decoding: Literal["greedy", "sample"] = "greedy",
        temperature: PositiveFloat | None = None,
        top_k: PositiveInt | None = None,
        top_p: PositiveFloat | None = None,
        budget: PositiveInt | None = None,
        stop: list[str] | None = None,
        task_stops: bool = True,
        prompts_at_once: PositiveInt | None = None,
    ) -> None:
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        name = next((name for name, value in given.items() if value is not None), None)
        if decoding == "greedy" and name is not None:
            raise ConfigError(
                f"{name} is {given[name]:g}, but decoding is greedy, which takes the most likely "
                "token",
                where=f"model.answering.init_args.{name}",
                allowed=f"{name} with decoding: sample",
                way_out=f"leave {name} out, or decoding: sample",
            )
        if top_p is not None and top_p > 1:
            raise ConfigError(
                f"top_p is {top_p:g}, which is not a probability",
                where="model.answering.init_args.top_p",
                allowed="a number above 0, at most 1",
            )
        if "" in (stop or ()):
            raise ConfigError(
                "a stop string is empty, and would end every answer before it begins",
                where="model.answering.init_args.stop",
                allowed="texts of at least one character",
            )
        self.decoding = decoding
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.budget = budget
        self.stop = tuple(stop or ())
        self.task_stops = task_stops
        self.prompts_at_once = prompts_at_once

    def describe(self) -> dict[str, Any]:
        """All that decides which tokens are answered, as plain values."""
        return {
            "decoding": self.decoding,
            **(self._narrowing() if self.decoding == "sample" else {}),
            "budget": self.budget,
            "stop": list(self.stop),
            "task_stops": self.task_stops,
        }

    def answer(
        self,
        policy: FastWeightLM,
        batch: TaskBatch,
        tokenizer: Tokenizer,
        generator: RowRandom | None = None,
    ) -> list[Answer]:
        """One answer for each row of ``batch``.

        Args:
            policy: the model that answers.
            batch: the prompts as tokens, with their rows.
            tokenizer: tokens to text.
            generator: one stream for each row; only ``sample`` needs it.

        Raises:
            ValueError: ``sample`` without a generator.
        """
        rows = batch.task_rows
        budgets = [self.budget or row.max_gen_tokens for row in rows]
        ends = [stop_of(row.task) if self.task_stops else None for row in rows]

        def end(row: int, tokens: Sequence[int]) -> int | None:
            if not self.stop and ends[row] is None:
                return None
            return stop_at(tokenizer.decode(tokens), self.stop, ends[row])

        made = continue_prompts(
            policy,
            batch.prompts,
            torch.tensor(budgets, dtype=torch.int64),
            eos_token_id=tokenizer.eos_token_id,
            ends=batch.turn_ends,
            choose=self._choose(generator, max(budgets, default=0)),
            is_stopped=lambda row, tokens: end(row, tokens) is not None,
            prompts_at_once=self.prompts_at_once,
        )
        spoken = [made.spoken(i) for i in range(len(rows))]
        return [
            Answer(
                row,
                tokenizer.decode(spoken[i])[: end(i, spoken[i])],
                num_tokens=int(made.num_tokens[i]),
                prompt_tokens=int(batch.prompts.num_tokens[i]),
                cut_tokens=batch.cut_tokens[i],
                finish=made.finish[i],
            )
            for i, row in enumerate(rows)
        ]

    def _choose(self, generator: RowRandom | None, length: int) -> Choose:
        if self.decoding == "greedy":
            return greedy
        if generator is None:
            raise ValueError("sampling needs a generator with one stream for each row")
        return sampling(generator, length, **self._narrowing())

    def _narrowing(self) -> dict[str, Any]:
        temperature = float(self.temperature or 1.0)
        return {"temperature": temperature, "top_k": self.top_k, "top_p": self.top_p}


def stop_of(task: str) -> End | None:
    """Where answers of ``task`` may end; None: only at end of text, stop strings and budget.

    It never changes a number that is reported for the task: the released rule and the further rules
    ignore everything after it. Hence RULER's questions have none, although their released rule
    reads one line: the official rule reads all of it.
    """
    cuts = [CUTS[rule.cut] for rule in rules_of(task)] if task in TASK_RULES else [str]

    def is_over(text: str) -> bool:
        """Whether all rules read one line, and it is whole: nothing is read of a longer text."""
        return all(cut(text) == cut(text + "x") for cut in cuts)

    def end(text: str) -> int | None:
        if not is_over(text):
            return None
        return next(n for n in range(len(text)) if is_over(text[: n + 1]))  # before the newline

    return end if is_over("a\nb") else None


def stop_at(text: str, strings: Sequence[str], end: End | None = None) -> int | None:
    """Where ``text`` is cut: before the first stop string, or where ``end`` says, if earlier.

    Args:
        text: what a model has answered so far.
        strings: stop strings.
        end: the task's own stop, if that counts.
    """
    places = [place for string in strings if (place := text.find(string)) >= 0]
    own = None if end is None else end(text)
    return min(places if own is None else [*places, own], default=None)
