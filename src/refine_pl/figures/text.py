"""Text for people: of models and documents, made harmless for Markdown, and short."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# What Markdown or HTML would take for markup. An underscore inside a word is not: the names of
# scalars stay legible.
_MARKUP = re.compile(r"[|<>&*`\[\]\\~#$]|(?<!\w)_|_(?!\w)")


def visible(text: str) -> str:
    """Text on one line; line ends, tabs and spaces at the ends can be seen."""
    text = text.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    after = len(text) - before - len(inner) if inner else 0
    return "␣" * before + inner + "␣" * after


def plain(text: str) -> str:
    """Text on one line that Markdown shows as it is; spaces at the ends stay visible."""
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", visible(text))


def markdown_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int | None = None
) -> list[str]:
    """The lines of a table in Markdown; the cells are Markdown already.

    Args:
        columns: the header.
        rows: as many cells each.
        text_columns: this many are words, the others are numbers; all of them if left out.
    """
    number = len(columns) if text_columns is None else text_columns
    border = "|" + "---|" * number + "---:|" * (len(columns) - number)
    head, *lines = ["| " + " | ".join(cells) + " |" for cells in (columns, *rows)]
    return [head, border, *lines]


def shortened(text: str, length: int) -> str:
    """At most ``length`` characters, the last of them an ellipsis if anything was left out."""
    return text if len(text) <= length else text[: length - 1] + "…"


def file_name(text: str) -> str:
    """A part of a file name: letters, digits and underscores only."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in text)
