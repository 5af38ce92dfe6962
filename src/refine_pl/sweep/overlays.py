"""The overlays of a sweep: configuration files that are put on top of a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refine_pl.errors import ConfigError, nearest
from refine_pl.training.run_folder import stages_of

BASE = "base"  # the group of the recipe itself


@dataclass(frozen=True, slots=True)
class Overlay:
    """One variant of the recipe.

    Args:
        group: what it is compared within: the name of its folder.
        name: the file's name without its ending.
        file: the configuration; None for the recipe as it is.
    """

    group: str
    name: str
    file: Path | None

    @property
    def label(self) -> str:
        """``reward/exact_match``."""
        return f"{self.group}/{self.name}"


def find_overlays(paths: Sequence[str], recipe: str, with_base: bool) -> list[Overlay]:
    """The overlays of files and folders, in their order; the recipe itself comes first.

    Args:
        paths: files, or folders that are searched for ``*.yaml``; numbers in names count.
        recipe: what the recipe's own entry is named after.
        with_base: whether it has one. Without any overlay it always has.

    Raises:
        ConfigError: nothing is there, or two files would share a folder of results.
    """
    found = [Overlay(BASE, Path(recipe).stem, None)] if with_base or not paths else []
    for path in paths:
        for file in _files(Path(path)):
            overlay = Overlay(file.resolve().parent.name, file.stem, file)
            twin = next((o for o in found if o.label == overlay.label), None)
            if twin is None:
                found.append(overlay)
            elif twin.file is None or not file.samefile(twin.file):
                raise ConfigError(
                    f"{file} and {twin.file or recipe} are both called {overlay.label}",
                    where="--overlays",
                    allowed="overlays that differ in their name or in that of their folder",
                    way_out="rename one of them",
                )
    return found


def changes(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of ``other`` that ``base`` has not, by dotted key; null where it has none."""
    before, after = dict(flatten(base)), dict(flatten(other))
    keys = [*after, *(key for key in before if key not in after)]
    return {k: after.get(k) for k in keys if k not in before or before[k] != after.get(k)}


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{"model": {"seed": 0}}`` as ``("model.seed", 0)``; lists are values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_effect(overlay: Overlay, changed: Mapping[str, Any], resolved: Mapping[str, Any]) -> None:
    """Refuse an overlay whose settings every stage of the recipe's schedule has of its own.

    Args:
        overlay: for the message.
        changed: its settings by dotted key.
        resolved: the whole configuration with the overlay.

    Raises:
        ConfigError: naming the setting; training would not notice it.
    """
    own = [
        {name for name, value in stage.items() if value is not None}
        | {*(stage.get("settings") or {}), *(stage.get("ramp") or {})}
        for stage in stages_of(resolved).values()
    ]
    for key in changed if own else ():
        name = key.removeprefix("model.").replace(".init_args.", ".")
        if all(name in settings for settings in own):
            raise ConfigError(
                f"{key} of {overlay.label} has no effect: every stage of the recipe's schedule "
                f"has its own {name}",
                where=str(overlay.file),
                way_out=f"take {name} out of a stage, or leave the overlay out",
            )


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(path.rglob("*.yaml"), key=_natural)
        if not files:
            raise ConfigError(f"there is no .yaml file in {path}", where="--overlays")
        return files
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path("configs/ablations")
        near = {str(p): p for p in folder.rglob("*") if p.is_dir() or p.suffix == ".yaml"}
        close = nearest(str(path), near)
        raise ConfigError(
            f"there is no file or folder {path}",
            where="--overlays",
            way_out=f"did you mean {close}?" if close else None,
        )
    return [path]


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """So that 2 comes before 16."""
    parts = re.split(r"(\d+)", str(path.with_suffix("")))
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts]
