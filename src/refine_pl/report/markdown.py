"""A report as Markdown, with its figures as files beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from refine_pl.figures.text import markdown_table, plain
from refine_pl.report.page import Block, Cell, Details, Gallery, Heading, Note, Page, Table

FIGURES = "figures"  # the folder beside the page


def render_markdown(page: Page) -> str:
    """The page."""
    lines = [f"# {plain(page.title)}", "", plain(page.subtitle), ""]
    for title, blocks in page.sections.items():
        lines += [f"## {plain(title)}", "", *_blocks(blocks)]
    return "\n".join(lines).rstrip() + "\n"


def figures_of(markdown: str) -> list[str]:
    """Names of the files that a page written by :func:`render_markdown` shows."""
    return re.findall(rf"\]\({FIGURES}/(\w+\.png)\)", markdown)


def _blocks(blocks: Sequence[Block]) -> list[str]:
    return [line for block in blocks for line in [*_block(block), ""]]


def _block(block: Block) -> list[str]:
    match block:
        case str():
            return [plain(block)]
        case Note(text):
            return [f"> {plain(text)}"]
        case Heading(text):
            return [f"### {plain(text)}"]
        case Table():
            return _table(block)
        case Gallery(pictures):
            return [f"![{plain(p.alt)}]({FIGURES}/{p.name}.png)" for p in pictures]
        case Details(summary, inner):
            return [f"#### {plain(summary)}", "", *_blocks(inner)[:-1]]


def _table(table: Table) -> list[str]:
    columns, *rows = [[_cell(cell) for cell in row] for row in (table.columns, *table.rows)]
    return [
        *([f"**{plain(table.title)}**", ""] if table.title else []),
        *markdown_table(columns, rows, table.text_columns),
        *(["", plain(table.caption)] if table.caption else []),
    ]


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return plain(cell)
    text = plain(cell.text)
    text = f"**{text}**" if cell.strong and text else text
    text = f"{plain(cell.before)} **→** {text}" if cell.before else text
    return f"{text} ({plain(cell.detail)})" if cell.detail else text
