"""A tokenizer's chat template around a prompt, for models that were trained on conversations.

The template belongs to the tokenizer. Here it is only asked what it writes in front of a user's
message, after it, in front of the answer, and what ends the answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal, Self, TypeAlias

import numpy as np

from refine_pl.errors import ConfigError
from refine_pl.tokenizers import Message, TokenIds, Tokenizer

ChatTemplate: TypeAlias = Literal["auto", "none"]
"""``auto``: prompts are wrapped if the tokenizer has a template."""
ChatOption: TypeAlias = bool | int | float | str

# Stand for a prompt and its answer, to see what is written around them.
_PROMPT, _ANSWER = "ThePromptStandsHere", "TheAnswerStandsHere"


@dataclass(frozen=True, slots=True)
class Chat:
    """What a template writes around prompts and answers.

    Args:
        tokenizer: whose template it is.
        options: variables of the template, for example ``enable_thinking: false``.
        head: in front of a prompt.
        tail: after it, up to where the model goes on.
        separator: between the tail and an answer; None if the template does not say.
        end: the id that ends an answer; None if the template writes no token of its own there.
    """

    tokenizer: Tokenizer
    options: Mapping[str, ChatOption]
    head: str
    tail: str
    separator: str | None
    end: int | None
    _ids: tuple[TokenIds, TokenIds] = field(repr=False)

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        setting: ChatTemplate = "auto",
        options: Mapping[str, ChatOption] | None = None,
        where: str = "data.chat_template",
    ) -> Self | None:
        """The template of a tokenizer, if it has one that shall be used.

        Args:
            tokenizer: may have one.
            setting: whether it is used.
            options: variables of the template.
            where: the setting, for messages.

        Raises:
            ConfigError: options without a template, one that it does not read, or a template that
                fails or leaves the prompt out.
        """
        template = tokenizer.chat_template if setting == "auto" else None
        if template is None:
            if options:
                raise ConfigError(
                    f"there are options of a chat template, and {tokenizer.label} has none"
                    if setting == "auto"
                    else "there are options of a chat template that is not used",
                    where=f"{where}_kwargs",
                    way_out=f"leave {where}_kwargs out",
                )
            return None
        for name in options or ():
            if not re.search(rf"\b{re.escape(name)}\b", template):
                raise ConfigError(
                    f"the chat template of {tokenizer.label} does not read {name!r}",
                    where=f"{where}_kwargs",
                    allowed="names of variables in the template",
                )

        def render(*messages: Message, answer: bool = False) -> str:
            return _render(tokenizer, messages, answer, options or {}, where)

        asked = render(_message("user", _PROMPT), answer=True)
        head, found, tail = asked.partition(_PROMPT)
        if not found or _PROMPT in tail:
            raise _fails(tokenizer, "it does not write the user's message once", where)
        whole = render(_message("user", _PROMPT), _message("assistant", _ANSWER))
        before, found, after = whole.rpartition(_ANSWER)
        if not found:
            raise _fails(tokenizer, "it does not write the assistant's message", where)
        separator = before.removeprefix(asked) if before.startswith(asked) else None
        special = tokenizer.marks
        end = next((token for token in tokenizer.encode(after) if token in special), None)
        ids = (np.asarray(tokenizer.encode(head)), np.asarray(tokenizer.encode(tail)))
        return cls(tokenizer, dict(options or {}), head, tail, separator, end, ids)

    def wrap(self, prompt: str) -> str:
        """The text that a model is given for a prompt: one message of the user.

        Raises:
            ConfigError: the template fails.
        """
        messages = [_message("user", prompt)]
        return _render(self.tokenizer, messages, True, self.options, "data.chat_template")

    def borders(self, ids: TokenIds) -> tuple[int, int]:
        """How many ids of a wrapped prompt are the template's: at its beginning, at its end."""
        head, tail = self._ids
        first = common_prefix(head, ids)
        return first, min(common_prefix(tail[::-1], ids[::-1]), len(ids) - first)

    @property
    def fingerprint(self) -> str:
        """Changes with anything that the template writes; some write the date."""
        parts = (self.tokenizer.chat_template, sorted(self.options.items()), self.head, self.tail)
        return blake2b(
            repr((*parts, self.separator, self.end)).encode(), digest_size=16
        ).hexdigest()

    def describe(self) -> str:
        """What is used, for run cards."""
        options = "".join(f", {name}={value}" for name, value in sorted(self.options.items()))
        return f"of the tokenizer ({self.fingerprint[:12]}){options}"


def common_prefix(first: TokenIds, second: TokenIds) -> int:
    """How many ids both begin with."""
    shorter = min(len(first), len(second))
    differ = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(differ[0]) if len(differ) else shorter


def _render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    answer: bool,
    options: Mapping[str, ChatOption],
    where: str,
) -> str:
    try:
        return tokenizer.render_chat(messages, answer, options)
    except Exception as error:  # templates raise errors of their own kinds
        raise _fails(tokenizer, " ".join(str(error).split())[:300], where) from error


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _fails(tokenizer: Tokenizer, why: str, where: str) -> ConfigError:
    return ConfigError(
        f"the chat template of {tokenizer.label} cannot be used: {why}",
        where=where,
        way_out="chat_template: none takes prompts as they are",
    )
