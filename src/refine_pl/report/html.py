"""A report as one HTML page that needs nothing else: no script, no file beside it, no network."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from refine_pl.report.drawing import DARK, LIGHT, Picture
from refine_pl.report.page import Cell, Page
from refine_pl.report.text import visible


def render_html(page: Page, png: Callable[[Picture, bool], bytes]) -> str:
    """The page.

    Args:
        page: the report.
        png: a picture as a file, for a dark page or a light one.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = lambda cell: Cell(cell) if isinstance(cell, str) else cell
    environment.filters["visible"] = visible
    environment.filters["breakable"] = breakable
    environment.globals["data_url"] = lambda picture, dark: Markup(_data_url(png(picture, dark)))
    folder = files("refine_pl.report")
    template = environment.from_string((folder / "page.html.j2").read_text(encoding="utf-8"))
    style = (folder / "page.css").read_text(encoding="utf-8")
    return template.render(
        page=page, style=Markup(style), light=LIGHT.runs, dark=DARK.runs, colours=len(LIGHT.runs)
    )


def breakable(text: str) -> Markup:
    """Text that may be broken where the parts of a task's name meet: ``multi_`` and ``hotpot``."""
    return Markup("<wbr>").join(re.split(r"(?<=[_-])|(?<=[a-z])(?=m?qa)", text))


def _data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
