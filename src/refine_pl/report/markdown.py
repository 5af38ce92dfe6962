"""A report as Markdown, with its figures as files beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from refine_pl.report.page import (
    Block,
    Cell,
    Details,
    Gallery,
    Heading,
    Note,
    Page,
    Paragraph,
    Sample,
    Table,
)
from refine_pl.report.text import plain, visible

FIGURES = "figures"  # the folder beside the page

# An underscore inside a word is no markup: the names of scalars stay legible.
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
    lines: list[str] = []
    for block in blocks:
        lines += [*_block(block), ""]
    return lines


def _block(block: Block) -> list[str]:
    match block:
        case Paragraph(text):
            return [escaped(text)]
        case Note(text):
            return [f"> {escaped(text)}"]
        case Heading(text):
            return [f"### {escaped(text)}"]
        case Table():
            return _table(block)
        case Gallery(pictures):
            return [f"![{escaped(p.alt)}]({FIGURES}/{p.name}.png)" for p in pictures]
        case Sample():
            return _sample(block)
        case Details(summary, inner):
            return [f"#### {escaped(summary)}", "", *_blocks(inner)]


def _table(table: Table) -> list[str]:
    numbers = len(table.columns) - table.text_columns
    lines = [
        _row([_cell(column) for column in table.columns]),
        "|" + "---|" * table.text_columns + "---:|" * numbers,
        *(_row([_cell(cell) for cell in row]) for row in table.rows),
    ]
    return [*lines, "", escaped(table.caption)] if table.caption else lines


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return escaped(cell)
    text = escaped(cell.text)
    text = f"**{text}**" if cell.strong and text else text
    return f"{text} ({escaped(cell.detail)})" if cell.detail else text


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _sample(sample: Sample) -> list[str]:
    names = ["text", "reward", *map(escaped, sample.parts), "advantage"]
    lines = [f"**{escaped(sample.title)}**", "", _row(names)]
    lines.append("|---|" + "---:|" * (len(names) - 1))
    empty = [""] * (len(names) - 1)
    # Written out as entities: rollouts are full of what any Markdown takes for markup.
    lines.append(_row([f"…{plain(sample.prefix)} **→** {plain(sample.target)} (target)", *empty]))
    for rollout in sample.rollouts:
        values = [f"{rollout.reward:.3f}", *(f"{part:.3f}" for part in rollout.parts)]
        lines.append(_row([plain(rollout.text), *values, f"{rollout.advantage:+.2f}"]))
    return lines
