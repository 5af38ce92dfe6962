"""Draws of generated rows: the same on every machine and under every version of Python."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeAlias, TypeVar

from refine_pl.data.tasks.words import ADJECTIVES, NOUNS
from refine_pl.randomness import stream_seed

Kind: TypeAlias = Literal["words", "numbers", "uuids"]
"""What a key or a value of a needle is."""

T = TypeVar("T")


class Draws:
    """A stream of random choices that is named by a seed and a purpose.

    It uses ``random.Random.random`` alone: the one method whose numbers Python promises to keep.

    Args:
        names: what the stream is named by.
        never: what :meth:`texts` leaves out.
    """

    def __init__(self, *names: int | str, never: Iterable[str] = ()) -> None:
        self._random = random.Random(stream_seed(*names))
        self._given = set(never)

    def real(self) -> float:
        """Uniform in [0, 1)."""
        return self._random.random()

    def below(self, number: int) -> int:
        """Uniform in 0 to ``number - 1``."""
        return int(self._random.random() * number)

    def one_of(self, values: Sequence[T]) -> T:
        """One of ``values``."""
        return values[self.below(len(values))]

    def text(self, kind: Kind) -> str:
        """A key or a value: a pair of words, seven digits, or a UUID of version 4."""
        if kind == "words":
            return f"{self.one_of(ADJECTIVES)}-{self.one_of(NOUNS)}"
        if kind == "numbers":
            return str(1_000_000 + self.below(9_000_000))
        number = 0
        for _ in range(4):
            number = number << 32 | self.below(2**32)
        return str(uuid.UUID(int=number, version=4))

    def texts(self, kind: Kind) -> Iterator[str]:
        """Keys or values without end; none of this stream comes twice."""
        while True:
            text = self.text(kind)
            if text not in self._given:
                self._given.add(text)
                yield text
