"""Text for people: of models and documents, made harmless for Markdown, and short."""

from __future__ import annotations

# What Markdown or HTML would take for markup.
MARKUP = {ord(c): f"&#{ord(c)};" for c in "|<>&*_`[]\\~#"}


def visible(text: str) -> str:
    """Text on one line; line ends, tabs and spaces at the ends can be seen."""
    text = text.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    after = len(text) - before - len(inner) if inner else 0
    return "␣" * before + inner + "␣" * after


def plain(text: str) -> str:
    """Text on one line that Markdown shows as it is; spaces at the ends stay visible."""
    return visible(text).translate(MARKUP)


def shortened(text: str, length: int) -> str:
    """At most ``length`` characters, the last of them an ellipsis if anything was left out."""
    return text if len(text) <= length else text[: length - 1] + "…"


def file_name(text: str) -> str:
    """A part of a file name: letters, digits and underscores only."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in text)
