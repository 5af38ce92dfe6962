"""A policy as a model of EleutherAI's lm-evaluation-harness (the package ``lm-eval``).

A fast-weight model has no window: nothing is ever truncated, a whole document is one pass, and all
continuations of a context are read as forks of its one state.

Letters: ``B`` rows, ``T`` tokens of the longest one, ``N`` continuations of a context, ``L`` tokens
of the longest continuation.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from refine_pl.backbones.base import FastWeightLM, Forks
from refine_pl.errors import ConfigError
from refine_pl.evaluation.answering import Answering
from refine_pl.randomness import RowRandom, stream_seed
from refine_pl.records import Batch
from refine_pl.task_records import TaskBatch, TaskRow
from refine_pl.tokenizers import Tokenizer

_BUDGETS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_DEFAULT_BUDGET = 256  # as in the harness
# What a task may say that changes nothing here.
_IDLE = {"num_beams": 1, "repetition_penalty": 1.0, "length_penalty": 1.0}

Item = TypeVar("Item")
Ids = tuple[int, ...]
Scored = tuple[float, bool]  # log-probability in nats; whether greedy decoding would give it


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
        by_context: defaultdict[Ids, set[Ids]] = defaultdict(set)
        for _, context, continuation in requests:
            by_context[tuple(context)].add(tuple(continuation))
        size = self.batch_size
        pieces = [
            (prefix, rest[start : start + size])  # thousands may follow an empty context
            # Long ones first: what is too large for the memory shows at once.
            for prefix in sorted(by_context, key=lambda c: (-len(c), c))
            for rest in [sorted(by_context[prefix], key=lambda c: (len(c), c))]
            for start in range(0, len(rest), size)
        ]
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
            answering = answering_of(json.loads(key))
            group.sort(key=lambda row: -len(row[1]))
            for rows in self._batches(group, "generation", disable_tqdm):
                texts = self._continued(rows, answering)
                for (number, _, _), text in zip(rows, texts, strict=True):
                    results[number] = text
                    self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return results

    # How it is done ------------------------------------------------------------------------------

    def _scores(self, rows: Sequence[tuple[Ids, Sequence[Ids]]]) -> dict[tuple[Ids, Ids], Scored]:
        """Of every continuation of some contexts."""
        tokens, num_tokens = self._padded([context for context, _ in rows])
        targets = _stacked([rest for _, rest in rows]).to(tokens.device)  # [B, N, L]
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

    def _continued(
        self, rows: Sequence[tuple[int, list[int], int]], answering: Answering
    ) -> list[str]:
        """What follows each context; rows are a number, the context and the stream of samples."""
        streams = tuple(stream for *_, stream in rows)
        prompts = Batch(*self._padded([context for _, context, _ in rows]), streams)
        questions = (TaskRow("", "", "", (), _DEFAULT_BUDGET),) * len(rows)
        batch = TaskBatch(prompts, questions, (0,) * len(rows))
        generator = RowRandom(self.seed, 0, streams, "lm-eval")
        with self.autocast():
            answers = answering.answer(self.policy, batch, self.text, generator)
        return [answer.text for answer in answers]

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows of ids as ``tokens [B, T]`` and ``num_tokens [B]``, on the policy's device."""
        device = next(self.policy.parameters()).device
        tokens = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        return tokens.to(device), torch.tensor([len(row) for row in rows], device=device)

    def _batches(self, items: Sequence[Item], what: str, quiet: bool) -> Iterator[Sequence[Item]]:
        with tqdm(total=len(items), desc=what, disable=quiet or not self.progress) as bar:
            for start in range(0, len(items), self.batch_size):
                batch = items[start : start + self.batch_size]
                yield batch
                bar.update(len(batch))


def answering_of(settings: Mapping[str, Any]) -> Answering:
    """How a task wants its contexts continued, by its ``generation_kwargs``.

    Raises:
        ConfigError: a setting that does not exist here, or settings that contradict each other.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    until = given.pop("until", [])
    budgets = [given.pop(name) for name in _BUDGETS if name in given]
    # As in the harness: a temperature alone does not sample, and without one it is 1.
    temperature = float(given.pop("temperature", 1.0 if "temperature" not in settings else 0.0))
    sample = {"top_k": given.pop("top_k", None) or None, "top_p": given.pop("top_p", None)}
    if not given.pop("do_sample", False) or temperature == 0:
        sample = {}
    else:
        sample |= {"decoding": "sample", "temperature": temperature}
    unknown = [name for name, value in given.items() if _IDLE.get(name) != value]
    if unknown:
        raise ConfigError(
            f"a task sets {unknown[0]} to {given[unknown[0]]!r} in its generation_kwargs",
            allowed="until, max_gen_toks, do_sample, temperature, top_k, top_p",
            way_out="leave the task out, or write one of your own without it",
        )
    return Answering(
        **sample,
        budget=int(budgets[0]) if budgets else _DEFAULT_BUDGET,
        stop=[text for text in ([until] if isinstance(until, str) else until) if text],
        task_stops=False,
    )


def _stacked(rows: Sequence[Sequence[Ids]]) -> Tensor:
    """Ragged ids as ``[B, N, L]`` int64, -1 where there are none; ``L`` is at least 1."""
    ids = [torch.tensor(ids, dtype=torch.int64) for row in rows for ids in row]
    flat = pad_sequence([*ids, torch.tensor([-1])], batch_first=True, padding_value=-1)[:-1]
    by_row = flat.split([len(row) for row in rows])
    return pad_sequence(list(by_row), batch_first=True, padding_value=-1)
