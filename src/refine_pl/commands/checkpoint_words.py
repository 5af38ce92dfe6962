"""What ``--ckpt_path`` may name beside a checkpoint: a word of Lightning, or a folder of runs.

Lightning looks its words up when the trainer is made, too late for the settings that a checkpoint
holds, and begins from scratch where it finds none. They are replaced by a path before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from refine_pl.commands.config_sources import Source, last_value
from refine_pl.errors import CheckpointError, ConfigError
from refine_pl.training.shard_files import METADATA

_LAST = re.compile(r"last(-v\d+)?\.ckpt")
_HPC = re.compile(r"hpc_ckpt_(\d+)\.ckpt")
_SHOWN = 5
_PATH = "a .ckpt file, or the folder that sharded training writes"


def find_checkpoint(
    given: str, command: str, sources: Sequence[Source], defaults: Mapping[str, Any]
) -> str:
    """The path that ``given`` stands for: itself, if it is one.

    Args:
        given: for ``--ckpt_path``.
        command: the subcommand.
        sources: where settings were given.
        defaults: of keys that no source gives.

    Raises:
        ConfigError: a word that means nothing here.
        CheckpointError: there is no such checkpoint, or several.
    """
    if given == "last":
        return str(_last(command, sources, defaults))
    if given == "hpc":
        return str(_of_a_cluster(sources))
    if given == "best" or re.match(r"registry(:|$)", given, re.IGNORECASE):
        raise ConfigError(
            f"--ckpt_path {given} is not known here",
            where="--ckpt_path",
            allowed=f"{_PATH}; last, for the newest last.ckpt of the runs of this name",
            way_out="the checkpoints of a run are in its folder, below checkpoints/",
        )
    folder = Path(given)
    sharded = (folder / "meta.pt").is_file() or (folder / METADATA).is_file()
    if folder.is_dir() and not sharded:
        raise _folder_is_not_one(folder)
    return given


def _last(command: str, sources: Sequence[Source], defaults: Mapping[str, Any]) -> Path:
    """The newest ``last.ckpt`` of the runs that have the name of this one."""
    if command not in ("fit", "validate"):
        raise ConfigError(
            f"--ckpt_path last is the last checkpoint of a training run, and {command} has none",
            where="--ckpt_path",
            allowed=_PATH,
        )
    folders = list(_checkpoint_folders(sources, defaults))
    found = [
        path
        for pattern in folders
        for path in Path(pattern.anchor or ".").glob(str(pattern.relative_to(pattern.anchor)))
        if _LAST.fullmatch(path.name)
    ]
    if not found:
        looked = ", ".join(str(folder) for folder in folders)
        raise CheckpointError(
            f"there is no last.ckpt in {looked}" if looked else "this run has no folder to look in",
            where="--ckpt_path last",
            allowed="a run of this name that has saved a checkpoint",
            way_out="give the path, or leave --ckpt_path out to begin from scratch",
        )
    return max(found, key=_age)


def _checkpoint_folders(sources: Sequence[Source], defaults: Mapping[str, Any]) -> Iterator[Path]:
    """Patterns of the files in the folders that the checkpoints of runs of this name go to."""
    own = [last_value(sources, f"checkpoint.{at}dirpath") for at in ("", "init_args.")]
    callbacks = last_value(sources, "trainer.callbacks")
    for spec in callbacks if isinstance(callbacks, list) else [callbacks]:
        if isinstance(spec, Mapping) and isinstance(spec.get("init_args"), Mapping):
            own.append(spec["init_args"].get("dirpath"))
    given = [Path(str(folder)) for folder in own if folder is not None]
    if given:
        yield from (folder / "last*.ckpt" for folder in given)
        return
    root = _root_of_runs(sources, defaults)
    if root is not None:
        yield root / "*" / "checkpoints" / "last*.ckpt"


def _root_of_runs(sources: Sequence[Source], defaults: Mapping[str, Any]) -> Path | None:
    """The folder of the numbered runs, which follows from the logger's settings."""
    logger = last_value(sources, "trainer.logger")
    spec = logger[0] if isinstance(logger, list) and logger else logger
    usual: Mapping[str, Any] = defaults.get("trainer.logger") or {}
    if spec is False:
        return None
    if spec is True:
        return Path(str(last_value(sources, "trainer.default_root_dir") or "."), "lightning_logs")
    path = spec if isinstance(spec, str) else (spec or {}).get("class_path")
    path = path or usual.get("class_path", "")
    same = path.rpartition(".")[2] == str(usual.get("class_path")).rpartition(".")[2]
    arguments = dict(usual.get("init_args") or {}) if same else {}
    if isinstance(spec, Mapping):
        arguments |= spec.get("init_args") or {}
    for name in ("save_dir", "name", "project"):
        for at in ("trainer.logger.init_args", "trainer.logger"):
            value = last_value(sources, f"{at}.{name}")
            arguments |= {} if value is None else {name: value}
    name = arguments.get("project") or arguments.get("name") or "lightning_logs"
    return Path(str(arguments.get("save_dir") or "."), str(name))


def _of_a_cluster(sources: Sequence[Source]) -> Path:
    """The newest checkpoint that Lightning wrote when a cluster ended the run."""
    root = Path(str(last_value(sources, "trainer.default_root_dir") or "."))
    files = {int(m[1]): p for p in root.glob("*") if (m := _HPC.fullmatch(p.name))}
    if not files:
        raise CheckpointError(
            f"there is no hpc_ckpt_<n>.ckpt in {root.absolute()}",
            where="--ckpt_path hpc",
            allowed="what Lightning writes to trainer.default_root_dir when a cluster ends a run",
            way_out="give the path of a checkpoint",
        )
    return files[max(files)]


def _folder_is_not_one(folder: Path) -> CheckpointError:
    inside = sorted(folder.rglob("*.ckpt"), key=_age, reverse=True)
    shown = ", ".join(str(path.relative_to(folder)) for path in inside[:_SHOWN])
    more = f" and {len(inside) - _SHOWN} more" if len(inside) > _SHOWN else ""
    return CheckpointError(
        f"{folder} is a folder, not a checkpoint; "
        + (f"it holds, newest first, {shown}{more}" if inside else "and it holds none"),
        where="--ckpt_path",
        allowed=_PATH,
        way_out=f"--ckpt_path {inside[0]}" if inside else None,
    )


def _age(path: Path) -> float:
    """When a checkpoint was written; a sharded one is a folder, and its last file tells."""
    meta = path / "meta.pt"
    return (meta if meta.is_file() else path).stat().st_mtime
