"""What a report is made of. HTML and Markdown are written from the same blocks.

All text is text: nothing in it is markup, whoever wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from refine_pl.report.drawing import Picture


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table."""

    text: str
    detail: str = ""  # shown smaller behind it, such as an interval
    run: int | None = None  # a mark in the colour of this run
    strong: bool = False


Row = Sequence["Cell | str"]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows below a header."""

    columns: Row
    rows: Sequence[Row]
    caption: str = ""
    text_columns: int = 1  # so many are words, the others are numbers
    separated: frozenset[int] = frozenset()  # rows with a line above them
    kind: str = "table"


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A few sentences."""

    text: str
    kind: str = "paragraph"


@dataclass(frozen=True, slots=True)
class Note:
    """What is missing or must be known to read the rest rightly."""

    text: str
    kind: str = "note"


@dataclass(frozen=True, slots=True)
class Heading:
    """Of a part of a section."""

    text: str
    run: int | None = None
    kind: str = "heading"


@dataclass(frozen=True, slots=True)
class Gallery:
    """Figures that belong together."""

    pictures: Sequence[Picture]
    caption: str = ""
    kind: str = "gallery"


@dataclass(frozen=True, slots=True)
class ShownRollout:
    """One rollout of a sample."""

    text: str
    reward: float
    parts: Sequence[float]  # in the order of the sample's names
    advantage: float


@dataclass(frozen=True, slots=True)
class Sample:
    """A position of a document with its rollouts."""

    title: str
    prefix: str
    target: str
    parts: Sequence[str]  # names of the rewards
    rollouts: Sequence[ShownRollout]
    kind: str = "sample"


@dataclass(frozen=True, slots=True)
class Details:
    """Blocks that are folded away at first."""

    summary: str
    blocks: Sequence[Block]
    kind: str = "details"


Block = Table | Paragraph | Note | Heading | Gallery | Sample | Details


@dataclass(frozen=True, slots=True)
class Section:
    """A titled part of the page."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """The name that links to it."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report."""

    title: str
    subtitle: str
    runs: Sequence[str]  # labels; the index is the colour
    sections: Sequence[Section] = field(default_factory=tuple)

    def pictures(self) -> list[Picture]:
        """Every figure, in the order of the page."""
        return [p for section in self.sections for p in _pictures(section.blocks)]


def _pictures(blocks: Sequence[Block]) -> list[Picture]:
    found: list[Picture] = []
    for block in blocks:
        if isinstance(block, Gallery):
            found += block.pictures
        elif isinstance(block, Details):
            found += _pictures(block.blocks)
    return found
