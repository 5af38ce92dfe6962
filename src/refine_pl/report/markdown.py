"""A report as Markdown, with its figures as files beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from refine_pl.figures.text import visible
from refine_pl.report.page import Block, Cell, Details, Gallery, Heading, Note, Page, Table

FIGURES = "figures"  # the folder beside the page

# An underscore inside a word is not markup: the names of scalars stay legible.
_MARKUP = re.compile(r"[\\`*\[\]|~$#]|(?<!\w)_|_(?!\w)")


def render_markdown(page: Page) -> str:
    """The page."""
    lines = [f"# {escaped(page.title)}", "", escaped(page.subtitle), ""]
    for section in page.sections:
        lines += [f"## {escaped(section.title)}", "", *_blocks(section.blocks)]
    return "\n".join(lines).rstrip() + "\n"


def escaped(text: str) -> str:
    """Text on one line that Markdown shows as it is."""
    text = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(lambda match: "\\" + match[0], text)


def figures_of(markdown: str) -> list[str]:
    """Names of the files that a page written by :func:`render_markdown` shows."""
    return re.findall(rf"\]\({FIGURES}/(\w+\.png)\)", markdown)


def _blocks(blocks: Sequence[Block]) -> list[str]:
    return [line for block in blocks for line in [*_block(block), ""]]


def _block(block: Block) -> list[str]:
    match block:
        case str():
            return [escaped(block)]
        case Note(text):
            return [f"> {escaped(text)}"]
        case Heading(text):
            return [f"### {escaped(text)}"]
        case Table():
            return _table(block)
        case Gallery(pictures):
            return [f"![{escaped(p.alt)}]({FIGURES}/{p.name}.png)" for p in pictures]
        case Details(summary, inner):
            return [f"#### {escaped(summary)}", "", *_blocks(inner)[:-1]]


def _table(table: Table) -> list[str]:
    numbers = len(table.columns) - table.text_columns
    return [
        *([f"**{escaped(table.title)}**", ""] if table.title else []),
        _row(table.columns),
        "|" + "---|" * table.text_columns + "---:|" * numbers,
        *map(_row, table.rows),
        *(["", escaped(table.caption)] if table.caption else []),
    ]


def _row(cells: Sequence[Cell | str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return escaped(cell)
    text = escaped(cell.text)
    text = f"**{text}**" if cell.strong and text else text
    text = f"{escaped(cell.before)} **→** {text}" if cell.before else text
    return f"{text} ({escaped(cell.detail)})" if cell.detail else text
