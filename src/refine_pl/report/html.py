"""A report as one HTML page that needs nothing else: no script, no file beside it, no network."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from refine_pl.figures.drawing import DARK, LIGHT, Picture
from refine_pl.report.page import Cell, Page


def render_html(page: Page, png: Callable[[Picture, bool], bytes]) -> str:
    """The page.

    Args:
        page: the report.
        png: a picture as a file, for a dark page or a light one.
    """

    def data_url(picture: Picture, dark: bool) -> Markup:
        content = base64.b64encode(png(picture, dark)).decode("ascii")
        return Markup("data:image/png;base64,") + Markup(content)

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = lambda cell: Cell(cell) if isinstance(cell, str) else cell
    environment.filters["breakable"] = breakable
    folder = files("refine_pl.report")
    template = environment.from_string((folder / "page.html.j2").read_text(encoding="utf-8"))
    style = Markup((folder / "page.css").read_text(encoding="utf-8"))
    return template.render(
        page=page, style=style, light=LIGHT.runs, dark=DARK.runs, data_url=data_url
    )


def breakable(text: str) -> Markup:
    """Text that may be broken where the parts of a task's name meet: ``multi_`` and ``hotpot``."""
    return Markup("<wbr>").join(re.split(r"(?<=[_-])|(?<=[a-z])(?=m?qa)", text))
