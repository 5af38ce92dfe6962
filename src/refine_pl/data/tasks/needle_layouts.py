"""The words around needles: what introduces the text, what a needle says, how the question ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from refine_pl.data.tasks.draws import Kind

THING: dict[Kind, str] = {"words": "word", "numbers": "number", "uuids": "code"}


class Layout(ABC):
    """How a row with needles is worded. Every prompt ends where its answer begins.

    Args:
        value_type: what the values are, for the wording.
        several_values: whether one key has several values.
    """

    name = ""

    def __init__(self, value_type: Kind, several_values: bool) -> None:
        self.thing = THING[value_type]
        self.several_values = several_values

    @abstractmethod
    def needle(self, key: str, value: str) -> str:
        """The sentence that is hidden."""

    @abstractmethod
    def prompt(self, text: str, keys: Sequence[str]) -> str:
        """The text with its question, up to the answer's first word."""


class Full(Layout):
    """Whole sentences, an introduction and a question."""

    name = "full"

    def needle(self, key: str, value: str) -> str:
        """``The hidden number of calm-river is 1234567.``"""
        if self.several_values:
            return f"One of the hidden {self.thing}s of {key} is {value}."
        return f"The hidden {self.thing} of {key} is {value}."

    def prompt(self, text: str, keys: Sequence[str]) -> str:
        """An introduction, the text, the question, and the beginning of the answer."""
        asked = _listed(keys)
        if self.several_values:
            question = f"What are all the hidden {self.thing}s of {asked} in the text above?"
            answer = f"The hidden {self.thing}s of {asked} are"
        elif len(keys) > 1:
            question = f"What are the hidden {self.thing}s of {asked} in the text above?"
            answer = f"The hidden {self.thing}s of {asked} are"
        else:
            question = f"What is the hidden {self.thing} of {asked} in the text above?"
            answer = f"The hidden {self.thing} of {asked} is"
        return (
            f"In the following text, sentences about hidden {self.thing}s stand between others. "
            f"Keep them in mind: the last line asks for some of them.\n\n{text}\n\n"
            f"Question: {question}\nAnswer: {answer}"
        )


class Short(Layout):
    """As few words as possible, for small numbers of tokens."""

    name = "short"

    def needle(self, key: str, value: str) -> str:
        """``calm-river = 1234567.``"""
        return f"{key} = {value}."

    def prompt(self, text: str, keys: Sequence[str]) -> str:
        """The text, and the keys that are asked for."""
        return f"{text}\n{', '.join(keys)} ="


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
