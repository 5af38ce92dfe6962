"""Draws of generated rows: the same on every machine and under every version of Python."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeAlias, TypeVar

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


# No adjective ends in another, and no noun begins with another: so none of the pairs is a part of
# another pair, and an output that holds one does not hold a second by accident.
_ADJECTIVES = """
    able acid aged airy avid bare big blue bold brave brief broad brown busy calm cheap chief
    civic civil clean clear close cold cool crisp cruel curly cute damp dark dear deep dense dim
    dizzy dry dual dull dusty eager early easy elder empty epic equal even exact faint fair false
    fancy far fast few fine firm fit flat fond frail frank free fresh full funny fuzzy giant glad
    good grand grave gray great green grim gross handy happy hard harsh hasty heavy high holy hot
    huge humid ideal inner itchy jolly juicy keen kind large last late lazy light lone long loose
    loud loyal lucky lush main major mild minor misty moist muddy mute naive near neat new nice
    noble noisy north novel numb odd only open oral outer pale past petty plain plump polar poor
    prime proud pure quick quiet rapid rare raw ready real regal rich rigid ripe rough round royal
    rude rusty sad safe same sandy sane scary sharp shiny short shy silky silly sleek slim slow
    small smart smoky smug snowy sober soft solar solid sore sour south spare spicy stale stark
    steep stern still stout sunny super sure sweet swift tall tame tart tasty tense tidy tight
    tiny tired total tough true ugly upper urban usual vague vain valid vast vital vivid warm wary
    weak weary wet white whole wide wild windy wise witty young zesty
"""
ADJECTIVES = tuple(_ADJECTIVES.split())
"""Of three to five letters."""

_NOUNS = """
    acorn actor alarm album amber angel ankle apple apron arena armor arrow aunt badge bagel baker
    banjo barn basil basin beach beard beast belt bench berry bird blade board boat bone book boot
    bread brick bride brush bull cabin cable cake camel canal candy cape cargo cat cave chain
    chair chalk cheek chef chess chest chin cliff cloak clock cloud clown coach coast coin comet
    coral couch cow crab crane crown cup curve daisy deer desk diary doll donut door dove drum
    duck eagle earth elbow elm fence fern ferry field fish flag flame flute foam fork fox frog
    fruit gate ghost glass globe glove goat goose grape grass guest harp hat hawk heart hen herb
    hill hoof horn horse hotel house igloo iron ivory jar jelly jewel judge juice kayak kite knee
    knife koala lake lamb lamp leaf lemon lily lion lock lunar maple mask melon moon moose motor
    mouse mouth mule nail nest nurse oak ocean olive onion orbit otter oven owl palm panda paper
    pasta peach pearl pedal pen phone piano pilot pipe pizza plate plum poem pony puppy queen
    quilt radio raft rain river robin robot roof rope rose ruler sail salad salt scarf seal seed
    shark sheep shelf shell ship shirt shoe silk skirt snail snake soap sock sofa soup spoon squid
    stamp star stone storm stove sugar swan table tiger toast torch tower toy train tray tree
    truck tulip uncle vase vest wagon whale wheat wheel wing wolf wood yacht zebra
"""
NOUNS = tuple(_NOUNS.split())
"""Of three to five letters."""
