"""Errors that a person can act on: what is wrong, where, what is allowed, and the way out.

The command line prints a :class:`UserError` in a few lines and leaves with exit code 2, without a
traceback. Everything else that escapes is a fault of the program and keeps its traceback.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping


class UserError(Exception):
    """Something that the user gave cannot be used.

    Args:
        what: one sentence that says what is wrong, with the offending value.
        where: the file, key, row or line that it was found in.
        allowed: the rule or the values that are allowed.
        way_out: what to type or change instead.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        allowed: str | None = None,
        way_out: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.allowed = allowed
        self.way_out = way_out
        super().__init__(self.render())

    def render(self) -> str:
        """The message as it is shown, one line for each part that is known."""
        lines = [self.what]
        for label, text in (
            ("where", self.where),
            ("allowed", self.allowed),
            ("way out", self.way_out),
        ):
            if text:
                lines.append(f"  {label + ':':<9}{text}")
        return "\n".join(lines)


class ConfigError(UserError):
    """A configuration or an argument is wrong."""


class DataError(UserError):
    """A corpus, a row or a tokenizer cannot be used."""


class CheckpointError(UserError):
    """A checkpoint does not fit what it is loaded into."""


class LostProcessError(UserError):
    """Another process of the run has ended or cannot be reached, and this one cannot go on."""


def deepest_reason(error: BaseException, length: int = 400) -> str:
    """What a library's error goes back to, in one line: libraries wrap what a reader of files said.

    Args:
        error: as it was caught.
        length: the most characters.
    """
    said: list[str] = []
    current: BaseException | None = error
    while current is not None:
        said.append(" ".join(str(current).split()) or type(current).__name__)
        current = current.__cause__
    outer, inner = said[0].rstrip(".:"), said[-1]
    # The outermost often names the file, the innermost says what is wrong with it.
    text = inner if outer in inner else f"{outer}: {inner}"
    return text if len(text) <= length else f"{text[:length]} ..."


def refuse_missing_folder(name: str, what: str) -> None:
    """Refuse what can only be the path of a folder, and is none: it would be asked for on the hub.

    Args:
        name: of a folder, or on the hub.
        what: is loaded from it.

    Raises:
        DataError: ``name`` begins with ``/``, ``./`` or ``../``, and nothing is there.
    """
    if name.startswith(("/", "./", "../")) and not os.path.exists(name):
        raise DataError(
            f"{what} {name!r} cannot be loaded: there is no such folder",
            way_out=f"check the path; it starts from {os.getcwd()}",
        )


def download_command(name: str, kind: str = "model") -> str:
    """How to fetch what a hub has by hand; a run without a network then finds it.

    Args:
        name: on the hub.
        kind: ``model`` or ``dataset``.
    """
    options = "" if kind == "model" else f" --repo-type {kind}"
    return f"`hf download{options} {name}` where there is a network fills the cache (HF_HOME)"


def check_choice(owner: str, name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse a word that is not among those that a setting may have.

    The command line knows them from the type; this is for classes made in Python, where another
    word would silently mean one of them.

    Args:
        owner: the class that has the setting.
        name: of the setting.
        value: what was given.
        choices: what may be.

    Raises:
        ConfigError: with the nearest choice.
    """
    choices = list(choices)
    if value in choices:
        return
    raise ConfigError(
        f"{name} is {value!r}",
        where=owner,
        allowed=f"one of {', '.join(choices)}",
        way_out=did_you_mean(str(value), choices),
    )


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that is spelt most like ``name``, or ``None`` if none comes close."""
    found = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(
    name: str, candidates: Iterable[str] | Mapping[str, str], otherwise: str | None = None
) -> str | None:
    """A way out: ``did you mean X?``, with the candidate that is spelt most like ``name``.

    Args:
        name: what was given.
        candidates: what it may have been meant to be; a mapping says for each what to show.
        otherwise: the way out if none comes close.
    """
    shown = candidates if isinstance(candidates, Mapping) else {c: c for c in candidates}
    close = nearest(name, shown)
    return f"did you mean {shown[close]}?" if close else otherwise
