"""What a report is made of. HTML and Markdown are written from the same blocks.

All text is text: nothing in it is markup, whoever wrote it. A string is a paragraph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refine_pl.figures.drawing import Picture


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table."""

    text: str
    detail: str = ""  # shown smaller after it, such as an interval
    run: int | None = None  # a mark in the colour of this run
    strong: bool = False
    before: str = ""  # shown fainter before it: the prefix of a target
    tone: str = ""  # of model text: true or drawn; of a number: better or worse


Row = Sequence["Cell | str"]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows below a header."""

    columns: Row
    rows: Sequence[Row]
    caption: str = ""
    text_columns: int = 1  # this many are words, the others are numbers
    separated: frozenset[int] = frozenset()  # rows with a line above them
    title: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """What is missing or must be known to read the rest rightly."""

    text: str


@dataclass(frozen=True, slots=True)
class Heading:
    """Of a part of a section."""

    text: str
    run: int | None = None


@dataclass(frozen=True, slots=True)
class Gallery:
    """Figures that belong together."""

    pictures: Sequence[Picture]


@dataclass(frozen=True, slots=True)
class Details:
    """Blocks that are folded away at first."""

    summary: str
    blocks: Sequence[Block]


Block = str | Table | Note | Heading | Gallery | Details


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report."""

    title: str
    subtitle: str
    runs: Sequence[str]  # labels; the index is the colour
    sections: Mapping[str, Sequence[Block]]  # by title
