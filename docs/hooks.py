"""Build hooks: pages made of other files, and plain code where docstrings mark references."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from refine_pl.training.metrics import markdown_table

_INCLUDE = re.compile(r'^--8<-- "(?P<path>[^"]+)"$', re.MULTILINE)
_METRICS = re.compile(r'^--8<-- metrics "(?P<group>[^"]+)"$', re.MULTILINE)
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>~?([^<]*)</code>")


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Put in files of the repository, their headings one level down, and tables of scalars."""
    root = Path(config.config_file_path).parent

    def included(match: re.Match[str]) -> str:
        text = (root / match["path"]).read_text(encoding="utf-8")
        return re.sub(r"^#", "##", text, flags=re.MULTILINE)

    markdown = _METRICS.sub(lambda match: markdown_table(match["group"]), markdown)
    return _INCLUDE.sub(included, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Drop the roles of references such as ``:class:`Reward```; the names are shown as code."""
    return _ROLE.sub(r"<code>\1</code>", html)
