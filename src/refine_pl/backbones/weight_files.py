"""Where the files of a published model are, and what is in them.

Weights are data: nothing of a checkpoint is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refine_pl.errors import CheckpointError

CONFIG = "config.json"
_SAFETENSORS, _BIN = "model.safetensors", "pytorch_model.bin"
_ALLOWED = "a folder with config.json and weights, or a name on the hub: owner/model, or \
owner/model/folder for a model in a folder of its repository"


def find_folder(path_or_name: str, revision: str | None = None) -> Path:
    """The folder of a model, fetched from the hub if it is not here.

    Args:
        path_or_name: a folder; or ``owner/model`` on the hub; or ``owner/model/folder``, where one
            repository holds several models.
        revision: branch, tag or commit on the hub.

    Raises:
        CheckpointError: there is none.
    """
    folder = Path(path_or_name).expanduser()
    if folder.is_dir():
        return folder
    owner, _, rest = path_or_name.partition("/")
    model, _, inside = rest.partition("/")
    local = folder.exists() or path_or_name.startswith((".", "/", "~"))
    if local or not model or inside.endswith("/") or ".." in inside.split("/"):
        raise CheckpointError(f"{path_or_name} is not a folder", allowed=_ALLOWED)
    return _from_hub(f"{owner}/{model}", inside, revision)


def _from_hub(name: str, inside: str, revision: str | None) -> Path:
    """The configurations of a repository first: it may hold several models, each of gigabytes."""
    root = _fetch(name, revision, [CONFIG, f"*/{CONFIG}"])
    folder = root / inside
    if not (folder / CONFIG).is_file():
        models = sorted(path.parent.relative_to(root) for path in root.rglob(CONFIG))
        named = ", ".join(f"{name}/{path}" for path in models if path != Path())
        raise CheckpointError(
            f"there is no {CONFIG} in {'/'.join(part for part in (name, inside) if part)} on the "
            "hub",
            allowed=_ALLOWED,
            way_out=f"it holds {named}" if named else None,
        )
    prefix = f"{inside}/" if inside else ""
    elsewhere = None if inside else "*/*"
    patterns = [f"{prefix}*.safetensors", f"{prefix}*.safetensors.index.json"]
    _fetch(name, revision, patterns, elsewhere)
    if not any(folder.glob("*.safetensors")):
        _fetch(name, revision, [f"{prefix}pytorch_model*.bin*"], elsewhere)
    return folder


def _fetch(name: str, revision: str | None, allow: list[str], ignore: str | None = None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=allow, ignore_patterns=ignore)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name} is neither a folder here nor a model on the hub that can be fetched",
            where=str(error).splitlines()[0][:200],
            allowed=_ALLOWED,
            way_out="download it first, and give the folder",
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        CheckpointError: it is not there, or something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no {path.name} in {path.parent}",
            allowed="a folder as the hub holds it: config.json and model.safetensors",
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a mapping but a {type(value).__name__}")
    return value


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder by name, in one file or in shards, as they are stored.

    Raises:
        CheckpointError: there are none, a shard is missing, or a file is damaged or holds code.
    """
    for name in (_SAFETENSORS, _BIN):
        index = folder / f"{name}.index.json"
        if index.exists():
            return _read_shards(folder, index)
        if (folder / name).exists():
            return _read(folder / name)
    raise CheckpointError(
        f"there are no weights in {folder}",
        allowed=f"{_SAFETENSORS} or {_BIN}, in one file or with an index of shards",
    )


def some(names: list[str], limit: int = 4) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _read_shards(folder: Path, index: Path) -> dict[str, Tensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, Mapping):
        raise CheckpointError(f"{index} has no weight_map", way_out="download the file again")
    weights: dict[str, Tensor] = {}
    for file in dict.fromkeys(weight_map.values()):
        if not (folder / file).exists():
            raise CheckpointError(f"the shard {file} is missing", where=str(index))
        weights |= _read(folder / file)
    absent = [name for name in weight_map if name not in weights]
    if absent:
        raise CheckpointError(f"the shards lack {some(absent)}", where=str(index))
    return weights


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not all(isinstance(tensor, Tensor) for tensor in weights.values()):
            raise ValueError("there are values that are not tensors")
    except Exception as error:  # zip, pickle, storage and safetensors' errors have no common class
        raise CheckpointError(
            f"{path} is truncated or corrupt, or holds more than tensors: "
            f"{(str(error).splitlines() or [type(error).__name__])[0][:200]}",
            allowed="tensors only; pickled code is never run",
            way_out="download the file again, or convert it to safetensors",
        ) from error
    return weights
