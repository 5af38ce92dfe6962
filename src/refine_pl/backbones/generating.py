"""Writing on from one prompt, token by token, as a stream.

Memory does not grow with what is written where the state has a fixed size: a step reads the state
and the last token. Prompts are read in blocks, so their length takes no memory either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from refine_pl.errors import ConfigError
from refine_pl.sampling import narrowed, sample_tokens

_BLOCK = 4096  # tokens of a prompt that are read together
_LONGEST_CHARACTER = 32  # tokens; what is not text by then never will be

Piece = TypeVar("Piece")


class TextCodec(Protocol):
    """What is asked of a tokenizer."""

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""


@dataclass(frozen=True, slots=True)
class Picking:
    """How the next token is picked.

    Args:
        max_tokens: the most tokens that are written.
        temperature: that logits are divided by; 0 takes the most likely token.
        top_k: only this number of most likely tokens.
        top_p: only the most likely tokens that together have this probability.
        seed: of the random numbers.

    Raises:
        ConfigError: a value is out of its range.
    """

    max_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int

    def __post_init__(self) -> None:
        checks = {
            "max_tokens": (self.max_tokens >= 1, "a number of tokens, at least 1"),
            "temperature": (0 <= self.temperature < math.inf, "a number, at least 0"),
            "top_k": (self.top_k is None or self.top_k >= 1, "a number of tokens, at least 1"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "above 0, at most 1"),
            "seed": (0 <= self.seed < 2**63, "an integer from 0 to 2^63 - 1"),
        }
        for name, (fits, allowed) in checks.items():
            if not fits:
                raise ConfigError(f"{name} is {getattr(self, name)}", where=name, allowed=allowed)

    def tokens(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """One token of each row of ``logits [M, V]``."""
        if self.temperature == 0:
            return logits.argmax(-1)
        uniform = torch.rand(len(logits), generator=generator, dtype=torch.float64)
        return sample_tokens(
            narrowed(logits, self.temperature, self.top_k, self.top_p), uniform.to(logits.device)
        )


class Generation(Iterator[Piece], Generic[Piece]):
    """What a model writes, piece by piece; nothing is computed before it is asked for.

    Attributes:
        num_tokens: written so far, one that ends the text included.
        finish: ``eos`` or ``length`` when the end has come, None before.
    """

    def __init__(self) -> None:
        self.num_tokens = 0
        self.finish: Literal["eos", "length"] | None = None
        self._pieces: Iterator[Piece] = iter(())

    def __next__(self) -> Piece:
        return next(self._pieces)


class Generating:
    """A model that writes on; it has a ``forward`` and a ``head`` as ``FastWeightLM`` does."""

    def generate(
        self,
        prompt: str | Sequence[int] | Tensor,
        tokenizer: TextCodec | None = None,
        *,
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        ends: Iterable[int | None] = (),
    ) -> Generation[Any]:
        """Write on from a prompt.

        Args:
            prompt: text, or the ids of one.
            tokenizer: of text; without one ids are written.
            max_tokens: the most tokens that are written.
            temperature: that logits are divided by; 0 takes the most likely token.
            top_k: only this number of most likely tokens.
            top_p: only the most likely tokens that together have this probability.
            seed: of the random numbers; the same seed writes the same.
            ends: ids that end the text, beside those of the tokenizer and the configuration.

        Returns:
            Pieces of text that, joined, are what was written; or ids. What ends the text is not
            among them.

        Raises:
            ConfigError: a setting is out of its range, the prompt has no token, or one that the
                model does not know.
        """
        picking = Picking(max_tokens, temperature, top_k, top_p, seed)
        if isinstance(prompt, str):
            if tokenizer is None:
                raise ConfigError("a prompt of text needs a tokenizer", where="tokenizer")
            prompt = tokenizer.encode(prompt)
        made: Generation[Any] = Generation()
        own = None if tokenizer is None else tokenizer.eos_token_id
        ids = _write(self, _checked(self, prompt), picking, {own, *ends, *_ends(self)}, made)
        made._pieces = ids if tokenizer is None else pieces(ids, tokenizer)
        return made


@torch.no_grad()
def _write(
    policy: Any, prompt: Tensor, picking: Picking, ends: set[int | None], made: Generation[Any]
) -> Iterator[int]:
    generator = torch.Generator().manual_seed(picking.seed)  # on the CPU: one stream everywhere
    state = None
    for block in prompt[None].split(_BLOCK, dim=1):
        output = policy(block, state=state)
        state = output.state
    while True:
        logits = policy.head(output.hidden[:, -1], logits=True).logits
        token = picking.tokens(logits, generator)
        number = int(token)
        made.num_tokens += 1
        if number in ends:
            made.finish = "eos"
            return
        if made.num_tokens == picking.max_tokens:
            made.finish = "length"
            yield number
            return
        yield number
        output = policy(token[:, None], state=state)
        state = output.state


def pieces(ids: Iterator[int], tokenizer: TextCodec) -> Iterator[str]:
    """The text of ids as it becomes certain: a character of several tokens comes as a whole.

    A short window is decoded at each step, since the text of a token may depend on the one before.
    """
    window: list[int] = []
    shown = 0  # ids of the window whose text was given
    for token in ids:
        window.append(token)
        before, text = tokenizer.decode(window[:shown]), tokenizer.decode(window)
        certain = not text.endswith("\ufffd") or len(window) - shown >= _LONGEST_CHARACTER
        if len(text) > len(before) and certain:
            yield text[len(before) :]
            window, shown = window[shown:], len(window) - shown
    rest = tokenizer.decode(window)[len(tokenizer.decode(window[:shown])) :]
    if rest:
        yield rest


def _checked(policy: Any, prompt: Sequence[int] | Tensor) -> Tensor:
    """The ids of a prompt, ``[T]`` on the policy's device."""
    device = next(policy.parameters()).device
    ids = torch.as_tensor(prompt, device=device)
    if ids.numel() == 0:
        raise ConfigError("the prompt has no token: there is nothing to go on from", where="prompt")
    if ids.dim() != 1 or ids.is_floating_point():
        raise ConfigError(
            f"the prompt is ids of shape {tuple(ids.shape)}",
            where="prompt",
            allowed="one or more ids in a row",
        )
    if int(ids.min()) < 0 or int(ids.max()) >= policy.vocab_size:
        raise ConfigError(
            f"the prompt has ids from {int(ids.min()):,} to {int(ids.max()):,}",
            where="prompt",
            allowed=f"0 to {policy.vocab_size - 1:,}, the tokens of the model",
            way_out="the tokenizer that the model was trained with",
        )
    return ids.long()


def _ends(policy: Any) -> tuple[int | None, ...]:
    """The ids that end a text by the model's configuration."""
    config = policy.config()
    found = config.get("text_config", config).get("eos_token_id")
    return tuple(found) if isinstance(found, list) else (found,)
