"""The recipes that come with the package, by name: ``tiny_mid``, ``ablations/reward/hybrid``.

A name is what the file is called in ``configs/``, without its suffix. Imports nothing heavy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

_ONE_FILE = ("--config", "-c", "--eval")  # options that take the name of a configuration
_FILES = ("--overlays", "--arms")  # that take several, or folders


def folder() -> Path:
    """Where the recipes are: inside the installed package, or in the clone that it runs from."""
    package = Path(str(files("refine_pl")))
    inside = package / "configs"
    return inside if inside.is_dir() else package.parents[1] / "configs"


def recipes() -> dict[str, Path]:
    """All recipes and overlays by name: complete recipes first, then folder by folder."""
    paths = {
        path.relative_to(folder()).as_posix().removesuffix(".yaml"): path
        for path in folder().rglob("*.yaml")
    }
    return {name: paths[name] for name in sorted(paths, key=_order)}


def _order(name: str) -> list[tuple[int, int, str]]:
    """Complete recipes before folders of overlays, and 2 before 16."""
    parts = re.split(r"(\d+)", name)
    numbered = [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts]
    return [("/" in name, 0, ""), *numbered]


def title(path: Path) -> str:
    """The first line of a recipe's header: what it is."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()


def with_paths(argv: Sequence[str]) -> list[str]:
    """Arguments in which recipes that were named are files.

    What exists as a file stays as it is, and so does what is not the name of a recipe.
    """
    words, option = [], ""
    for word in argv:
        name, equals, value = word.partition("=")
        if word.startswith("-"):
            option = "" if equals else name
            words.append(f"{name}={_path(value, name)}" if equals else word)
            continue
        words.append(_path(word, option))
        if option not in _FILES:
            option = ""  # it takes one
    return words


def _path(name: str, option: str) -> str:
    several = option in _FILES
    if option not in (*_ONE_FILE, *_FILES) or os.path.isfile(name):
        return name
    inside = recipes().get(name)
    if several and os.path.isdir(name):
        inside = None
    elif several and any(recipe.startswith(f"{name}/") for recipe in recipes()):
        inside = folder() / name
    return name if inside is None else str(inside)
