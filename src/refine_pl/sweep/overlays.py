"""The overlays of a sweep: configuration files that are put on top of a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from refine_pl.errors import ConfigError, nearest
from refine_pl.training.run_folder import SweepOverlay, stages_of

BASE = "base"  # the group of the recipe itself


def find_overlays(paths: Sequence[str], recipe: str, with_base: bool) -> list[SweepOverlay]:
    """The overlays of files and folders, in their order; the recipe itself comes first.

    Args:
        paths: files, or folders that are searched for ``*.yaml``; numbers in names count.
        recipe: what the recipe's own entry is named after.
        with_base: whether it has one. Without any overlay it always has.

    Raises:
        ConfigError: nothing is there, or two files would share a folder of results.
    """
    base = SweepOverlay(Path(recipe).stem, BASE, None)
    found = {base.label: base} if with_base or not paths else {}
    for file in (file for path in paths for file in _files(Path(path))):
        overlay = SweepOverlay(file.stem, file.resolve().parent.name, str(file))
        twin = found.setdefault(overlay.label, overlay)
        if twin.file is None or not file.samefile(twin.file):
            raise ConfigError(
                f"{file} and {twin.file or recipe} are both called {overlay.label}",
                where="--overlays",
                allowed="overlays that differ in their name or in that of their folder",
                way_out="rename one of them",
            )
    return list(found.values())


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


def check_effect(overlay: SweepOverlay, resolved: Mapping[str, Any]) -> None:
    """Refuse an overlay whose settings every stage of the recipe's schedule has of its own.

    Args:
        overlay: with what it changes.
        resolved: the whole configuration with the overlay.

    Raises:
        ConfigError: naming the setting; training would not notice it.
    """
    own = [
        {name for name, value in stage.items() if value is not None}
        | {*(stage.get("settings") or {}), *(stage.get("ramp") or {})}
        for stage in stages_of(resolved).values()
    ]
    for key in overlay.changes if own else ():
        name = key.removeprefix("model.").replace(".init_args.", ".")
        if all(name in settings for settings in own):
            raise ConfigError(
                f"{key} of {overlay.label} has no effect: every stage of the recipe's schedule "
                f"has its own {name}",
                where=overlay.file,
                way_out=f"take {name} out of a stage, or leave the overlay out",
            )


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(path.rglob("*.yaml"), key=natural)
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


def natural(path: Path) -> list[tuple[int, str]]:
    """A key for sorting by which 2 comes before 16."""
    parts = re.split(r"(\d+)", str(path.with_suffix("")))
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]
