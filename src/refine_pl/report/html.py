"""A report as one HTML page that needs nothing else: no script, no file beside it, no network."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from refine_pl.figures.drawing import DARK, LIGHT, Picture, Theme
from refine_pl.report.page import Cell, Page
from refine_pl.whole_files import replace_file


def render_html(page: Page, figures: Path) -> tuple[str, list[Path]]:
    """The page, and the files of its figures.

    Args:
        page: the report.
        figures: the folder in which each figure is written as it is for a light page.
    """
    written: list[Path] = []

    def url(picture: Picture, theme: Theme) -> Markup:
        content, file = picture.png(theme), figures / f"{picture.name}.png"
        if theme is LIGHT:
            if file in written:
                raise AssertionError(f"two figures are called {picture.name}")
            replace_file(file, content)
            written.append(file)
        return Markup("data:image/png;base64,") + base64.b64encode(content).decode("ascii")

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = lambda cell: Cell(cell) if isinstance(cell, str) else cell
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["breakable"] = breakable
    environment.filters["url"] = url
    template = environment.get_template("page.html.j2")
    return template.render(page=page, light=LIGHT, dark=DARK), written


def breakable(text: str) -> Markup:
    """Text that may be broken where the parts of a task's name meet: ``multi_`` and ``hotpot``."""
    return Markup("<wbr>").join(re.split(r"(?<=[_-])|(?<=[a-z])(?=m?qa)", text))
