"""The words around needles: what introduces the text, what a needle says, how the question ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refine_pl.data.tasks.draws import Kind

_THINGS: dict[Kind, str] = {"words": "word", "numbers": "number", "uuids": "code"}


@dataclass(frozen=True, slots=True)
class Layout:
    """How a row with needles is worded. Every prompt ends where its answer begins.

    Args:
        value_type: what the values are, for the wording.
        several_values: whether one key has several values.
        short: as few words as possible, for small numbers of tokens; otherwise whole sentences, an
            introduction and a question.
    """

    value_type: Kind
    several_values: bool
    short: bool = False

    def needle(self, key: str, value: str) -> str:
        """The sentence that is hidden: ``The hidden number of calm-river is 1234567.``"""
        if self.short:
            return f"{key} = {value}."
        thing = _THINGS[self.value_type]
        if self.several_values:
            return f"One of the hidden {thing}s of {key} is {value}."
        return f"The hidden {thing} of {key} is {value}."

    def prompt(self, text: str, keys: Sequence[str]) -> str:
        """The text with its question, up to the answer's first word."""
        if self.short:
            return f"{text}\n{', '.join(keys)} ="
        thing = _THINGS[self.value_type]
        asked = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"
        several = self.several_values or len(keys) > 1
        subject = f"hidden {thing}{'s' if several else ''} of {asked}"
        verb = "are" if several else "is"
        all_of_them = "all the" if self.several_values else "the"
        return (
            f"In the following text, sentences about hidden {thing}s stand between others. "
            f"Keep them in mind: the last line asks for some of them.\n\n{text}\n\n"
            f"Question: What {verb} {all_of_them} {subject} in the text above?\n"
            f"Answer: The {subject} {verb}"
        )
