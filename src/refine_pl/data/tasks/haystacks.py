"""The text around needles: sentences, of which a row takes the most that fit."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from refine_pl.data.corpora import Corpus
from refine_pl.errors import DataError

NOISE = (
    "The kettle is on the stove. ",
    "A cat sleeps near the door. ",
    "Rain falls on the roof. ",
    "The road goes down to the sea. ",
    "Two boats wait at the pier. ",
    "The clock in the hall ticks. ",
    "Leaves lie under the tree. ",
    "Someone reads by the window. ",
)

_MOST_CHARACTERS = 2**24  # of a corpus that are read
_LONGEST_SENTENCE = 400  # characters; longer ones are cut at a space


class Sentences:
    """Sentences without end, of which the first ones are taken; each ends with its white space."""

    def __init__(self, source: Iterable[str]) -> None:
        self._source = iter(source)
        self._taken: list[str] = []

    def first(self, number: int) -> list[str]:
        """The first ``number`` sentences."""
        self._taken += itertools.islice(self._source, max(0, number - len(self._taken)))
        return self._taken[:number]


def corpus_sentences(corpus: Corpus) -> list[str]:
    """The sentences of a corpus, in its order; its first 16 million characters are read.

    Raises:
        DataError: there is none.
    """
    found: list[str] = []
    characters = 0
    for _, text in corpus.documents():
        found += split_sentences(text)
        characters += len(text)
        if characters >= _MOST_CHARACTERS:
            break
    if not found:
        raise DataError(
            "the corpus has no text for a haystack",
            where=corpus.label,
            allowed="documents that are not blank",
        )
    return found


def split_sentences(text: str) -> Iterator[str]:
    """Lines, cut after full stops; each keeps the white space and the blank line after it."""
    waiting = ""
    for line in text.replace("\r\n", "\n").split("\n"):
        if not line.strip():
            # At most one blank line: more would say nothing and cost tokens.
            waiting += "\n" if waiting.endswith("\n") and not waiting.endswith("\n\n") else ""
            continue
        if waiting:
            yield waiting
        *others, last = _pieces(line)
        yield from others
        waiting = last.rstrip() + "\n"
    if waiting:
        yield waiting


def _pieces(line: str) -> list[str]:
    found = []
    for sentence in re.split(r"(?<=[.!?]) +(?=\S)", line):
        rest = sentence
        while len(rest) > _LONGEST_SENTENCE:
            cut = rest.rfind(" ", 1, _LONGEST_SENTENCE) + 1 or _LONGEST_SENTENCE
            found.append(rest[:cut])
            rest = rest[cut:]
        if rest:
            found.append(rest.rstrip() + " ")
    return found or [line]
