"""A policy as a model of EleutherAI's lm-evaluation-harness (the package ``lm-eval``).

A fast-weight model has no window: nothing is ever truncated, a whole document is one pass, and all
continuations of a context are read as forks of its one state.

Letters: ``B`` rows, ``T`` tokens of the longest one, ``N`` continuations of a context, ``L`` tokens
of the longest continuation.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol, TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from torch import Tensor
from tqdm import tqdm

from refine_pl.backbones.base import FastWeightLM, Forks
from refine_pl.errors import ConfigError
from refine_pl.evaluation.decoding import greedy, sampling
from refine_pl.evaluation.generation import Choose, continue_prompts
from refine_pl.evaluation.stops import stop_at
from refine_pl.randomness import RowRandom, stream_seed
from refine_pl.records import Batch

_BUDGETS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_DEFAULT_BUDGET = 256  # as in the harness
# What a task may say that changes nothing here.
_IDLE = {"num_beams": 1, "repetition_penalty": 1.0, "length_penalty": 1.0}

Item = TypeVar("Item")
Ids = tuple[int, ...]
Scored = tuple[float, bool]  # log-probability in nats; whether greedy decoding would give it


class Tokenizer(Protocol):
    """What is needed of a tokenizer."""

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text, or None."""

    @property
    def label(self) -> str:
        """For people."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""


class PolicyLM(TemplateLM):
    """Answers the harness's requests with a policy.

    Args:
        policy: the model.
        tokenizer: text to ids and back; nothing is added to a text.
        batch_size: rows that are read or continued together.
        seed: names the random streams of tasks that sample.
        autocast: makes the context of every pass; none if left out.
        progress: show progress bars.
    """

    def __init__(
        self,
        policy: FastWeightLM,
        tokenizer: Tokenizer,
        batch_size: int = 8,
        seed: int = 0,
        autocast: Callable[[], Any] | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__()
        self.policy = policy.eval()
        self.text = tokenizer  # the harness expects another kind under `tokenizer`
        self.batch_size = batch_size
        self.seed = seed
        self.autocast = autocast or nullcontext
        self.progress = progress

    # What the harness asks for -------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text; it stands for an empty context too.

        Raises:
            ConfigError: the tokenizer has none.
        """
        token = self.text.eos_token_id
        if token is None:
            raise ConfigError(
                f"{self.text.label} names no end-of-text token, which an empty context begins with",
                way_out="a tokenizer with one, or tasks without empty contexts and whole documents",
            )
        return token

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """The ids of a text; special ones are never added."""
        return self.text.encode(string)

    def get_model_info(self) -> dict[str, Any]:
        """For the results file."""
        config = {k: v for k, v in self.policy.config().items() if v is not None}
        size = sum(p.numel() for p in self.policy.parameters())
        return {
            "model": type(self.policy).__name__,
            "model_num_parameters": size,
            "model_config": config,
            "tokenizer": self.text.label,
        }

    @torch.no_grad()
    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[Scored]:
        """Log-probability of each continuation after its context, which is read once for all."""
        by_context: dict[Ids, dict[Ids, None]] = {}  # a dict for a set, to keep the order
        for _, context, continuation in requests:
            by_context.setdefault(tuple(context), {})[tuple(continuation)] = None
        pieces: list[tuple[Ids, list[Ids]]] = []
        # Long ones first: what is too large for the memory shows at once.
        for prefix in sorted(by_context, key=lambda c: (-len(c), c)):
            rest = sorted(by_context[prefix], key=lambda c: (len(c), c))
            parts = range(0, len(rest), self.batch_size)  # thousands may follow an empty context
            pieces += [(prefix, rest[start : start + self.batch_size]) for start in parts]
        scores: dict[tuple[Ids, Ids], Scored] = {}
        for batch in self._batches(pieces, "log-likelihood", disable_tqdm):
            scores |= self._scores(batch)
        results = [scores[tuple(context), tuple(end)] for _, context, end in requests]
        for (text, _, _), scored in zip(requests, results, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, scored)
        return results

    @torch.no_grad()
    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of each whole document after an end-of-text token, in one pass."""
        documents = [[self.eot_token_id, *self.tok_encode(r.args[0])] for r in requests]
        results = [0.0] * len(documents)
        order = sorted(range(len(documents)), key=lambda i: -len(documents[i]))
        for numbers in self._batches(order, "documents", disable_tqdm):
            tokens, num_tokens = self._padded([documents[i] for i in numbers])
            with self.autocast():
                hidden = self.policy(tokens, num_tokens).hidden[:, :-1]
                place = torch.arange(1, tokens.shape[1], device=tokens.device)
                targets = tokens[:, 1:].where(place < num_tokens[:, None], -1)
                logprob = self.policy.head(hidden.flatten(0, 1), targets.flatten()).logprob
            totals = logprob.double().view_as(targets).sum(-1).tolist()
            for number, total in zip(numbers, totals, strict=True):
                results[number] = total
        for request, total in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return results

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each context as its task says: greedily, or by samples of its own stream."""
        results = [""] * len(requests)
        repeats: Counter[str] = Counter()
        groups: dict[str, list[tuple[int, list[int], int]]] = {}
        for number, request in enumerate(requests):
            context, settings = request.args
            key = json.dumps(settings, sort_keys=True)
            stream = stream_seed(context, repeats[context + key])
            repeats[context + key] += 1
            tokens = self.tok_encode(context) or [self.eot_token_id]
            groups.setdefault(key, []).append((number, tokens, stream))
        for key, group in groups.items():
            settings = Generation(json.loads(key))
            group.sort(key=lambda row: -len(row[1]))
            for rows in self._batches(group, "generation", disable_tqdm):
                texts = self._generate(rows, settings)
                for (number, _, _), text in zip(rows, texts, strict=True):
                    results[number] = text
                    self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return results

    # How it is done ------------------------------------------------------------------------------

    def _scores(self, rows: Sequence[tuple[Ids, Sequence[Ids]]]) -> dict[tuple[Ids, Ids], Scored]:
        """Of every continuation of some contexts."""
        tokens, num_tokens = self._padded([context for context, _ in rows])
        targets = _stacked([rest for _, rest in rows], -1).to(tokens.device)  # [B, N, L]
        number = torch.arange(len(rows), device=tokens.device)
        forks = None
        if targets.shape[-1] > 1:  # nothing is predicted from the last token
            read = targets[:, None, :, :-1].clamp_min(0)
            forks = Forks(num_tokens[:, None], read, torch.ones_like(num_tokens[:, None]).bool())
        with self.autocast():
            output = self.policy(tokens, num_tokens, forks=forks)
            hidden = output.hidden[number, num_tokens - 1]
            hidden = hidden[:, None, None].expand(-1, targets.shape[1], 1, -1)  # [B, N, 1, D]
            if output.fork_hidden is not None:
                hidden = torch.cat([hidden, output.fork_hidden[:, 0]], 2)
            stats = self.policy.head(hidden.flatten(0, 2), targets.flatten(), correct=True)
        logprobs = stats.logprob.double().view_as(targets).sum(-1).tolist()
        correct = (stats.correct.view_as(targets) | (targets < 0)).all(-1).tolist()
        return {
            (context, continuation): (logprobs[b][n], correct[b][n])
            for b, (context, rest) in enumerate(rows)
            for n, continuation in enumerate(rest)
        }

    def _generate(
        self, rows: Sequence[tuple[int, list[int], int]], settings: Generation
    ) -> list[str]:
        tokens, num_tokens = self._padded([row for _, row, _ in rows])
        streams = tuple(stream for _, _, stream in rows)

        def stopped(row: int, made: Sequence[int]) -> bool:
            return stop_at(self.text.decode(made), settings.until) is not None

        with self.autocast():
            answers = continue_prompts(
                self.policy,
                Batch(tokens, num_tokens, streams),
                torch.full((len(rows),), settings.budget),
                eos_token_id=self.text.eos_token_id,
                choose=settings.choose(RowRandom(self.seed, 0, streams, "lm-eval")),
                is_stopped=stopped if settings.until else None,
            )
        texts = []
        for i, finish in enumerate(answers.finish):
            made = answers.row(i)
            text = self.text.decode(made[:-1] if finish == "eos" else made)
            texts.append(text[: stop_at(text, settings.until)])
        return texts

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows of ids as ``tokens [B, T]`` and ``num_tokens [B]``, on the policy's device."""
        device = next(self.policy.parameters()).device
        return (
            _stacked([[row] for row in rows], 0)[:, 0].to(device),
            torch.tensor([len(row) for row in rows], device=device),
        )

    def _batches(self, items: Sequence[Item], what: str, quiet: bool) -> Iterator[Sequence[Item]]:
        with tqdm(total=len(items), desc=what, disable=quiet or not self.progress) as bar:
            for start in range(0, len(items), self.batch_size):
                batch = items[start : start + self.batch_size]
                yield batch
                bar.update(len(batch))


class Generation:
    """How a task wants its contexts continued.

    Args:
        settings: the task's ``generation_kwargs``.

    Raises:
        ConfigError: a setting that is not there here, or settings that contradict each other.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        given = dict(settings)
        until = given.pop("until", None) or []
        self.until = tuple(s for s in ([until] if isinstance(until, str) else until) if s)
        budgets = [given.pop(name) for name in _BUDGETS if given.get(name) is not None]
        self.budget = int(budgets[0]) if budgets else _DEFAULT_BUDGET
        self.temperature = float(given.pop("temperature", None) or 0.0)
        # As in the harness: a temperature alone does not sample, and none is 1 where one does.
        self.do_sample = bool(given.pop("do_sample", False))
        if self.do_sample and "temperature" not in settings:
            self.temperature = 1.0
        self.top_k = given.pop("top_k", None)
        self.top_p = given.pop("top_p", None)
        unknown = {k: v for k, v in given.items() if v is not None and _IDLE.get(k) != v}
        if unknown:
            name, value = next(iter(unknown.items()))
            raise ConfigError(
                f"a task sets {name} to {value!r} in its generation_kwargs",
                allowed="until, max_gen_toks, do_sample, temperature, top_k, top_p",
                way_out="leave the task out, or write one of your own without it",
            )

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn; a temperature of 0 is greedy decoding."""
        return self.do_sample and self.temperature > 0

    def choose(self, generator: RowRandom) -> Choose:
        """How the next tokens are picked."""
        if not self.samples:
            return greedy
        return sampling(
            generator,
            self.budget,
            temperature=self.temperature,
            top_k=int(self.top_k) if self.top_k else None,
            top_p=self.top_p,
        )


def _stacked(rows: Sequence[Sequence[Sequence[int]]], padding: int) -> Tensor:
    """Ragged ids as ``[B, N, L]`` int64, ``padding`` where there are none."""
    count = max(len(row) for row in rows)
    length = max((len(ids) for row in rows for ids in row), default=0)
    stacked = torch.full((len(rows), count, max(length, 1)), padding, dtype=torch.int64)
    for b, row in enumerate(rows):
        for n, ids in enumerate(row):
            stacked[b, n, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return stacked
