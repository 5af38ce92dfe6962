"""Where the files of a published model are, and what is in them.

Weights are data: nothing of a checkpoint is ever run.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from refine_pl.backbones.stored_names import some
from refine_pl.errors import CheckpointError, download_command
from refine_pl.numbers import check_finite_weights
from refine_pl.parsing import parse_json

CONFIG = "config.json"
_SAFETENSORS, _BIN = "model.safetensors", "pytorch_model.bin"
# What torch.compile, activation checkpointing, FSDP1 and DDP put into the names of parameters.
_WRAPPERS = re.compile(
    r"^((module|_orig_mod)\.)+|(?<![^.])(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\."
)
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
    root = _fetch(name, revision, [CONFIG, f"*/{CONFIG}"], inside=inside)
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


def _fetch(
    name: str,
    revision: str | None,
    allow: list[str],
    ignore: str | None = None,
    inside: str = "",
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=allow, ignore_patterns=ignore)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        given = f"{name}/{inside}" if inside else name
        raise CheckpointError(
            f"{given} is neither a folder here nor a model on the hub that can be fetched",
            where=str(error).splitlines()[0][:200],
            allowed=_ALLOWED,
            way_out=f"check the name; {download_command(name)}; or give a folder",
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping; a byte order mark before it is left out.

    Raises:
        CheckpointError: it is not there, or something else.
    """
    try:
        value = parse_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no {path.name} in {path.parent}",
            allowed="a folder as the hub holds it: config.json and model.safetensors",
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        reason, way_out = not_the_content(path) or (str(error), None)
        raise CheckpointError(f"{path} is not JSON: {reason}", way_out=way_out) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a mapping but a {type(value).__name__}")
    return value


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder by name, in one file or in shards, as they are stored.

    One file is read rather than shards, as transformers does; a warning says so if there are both.
    What ``torch.compile`` and wrappers of modules add to names is taken off.

    Raises:
        CheckpointError: there are none, a shard is missing, or a file is damaged or holds code; a
            tensor is not of a floating-point type, or is stored twice with different values.
    """
    for name in (_SAFETENSORS, _BIN):
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            if index.exists() and _shards_of(index) - {name}:
                warnings.warn(
                    f"{folder} holds {name} and shards: the file was read, and {index.name} was "
                    "not; remove the one that is out of date",
                    stacklevel=3,
                )
            return _plain_names(_read(folder / name), folder / name)
        if index.exists():
            return _plain_names(_read_shards(folder, index), index)
    others = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
    raise CheckpointError(
        f"there are no weights in {folder}" + (f" but {some(others)}" if others else ""),
        allowed=f"{_SAFETENSORS} or {_BIN}, in one file or with an index of shards",
        way_out=f"shards need {_SAFETENSORS}.index.json, which says what belongs in each"
        if others
        else None,
    )


def weights_hash(policy: nn.Module) -> str:
    """A digest of the weights, 32 hexadecimal digits.

    BLAKE2b over the state dictionary in the order of its names: each name with its shape, then the
    bytes of the tensor as float32. The same weights have the same digest in a Lightning checkpoint,
    in an exported folder and in any wider precision.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(policy.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().cpu().contiguous().reshape(-1).numpy().data)
    return digest.hexdigest()


def not_the_content(path: Path) -> tuple[str, str] | None:
    """What stands in the place of a file's content, and the way out; None if nothing is known."""
    try:
        start = path.read_bytes()[:64] if path.stat().st_size < 4096 else b""
    except OSError:
        return None
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of git-lfs to a file that was not fetched", "git lfs pull"
    if path.stat().st_size == 0:
        return "it is empty", "download the file again"
    return None


def _shards_of(index: Path) -> set[str]:
    return set(_weight_map(index).values())


def _weight_map(index: Path) -> dict[str, str]:
    """The shard of each tensor, by an index."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index} has no weight_map", way_out="download the file again")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise CheckpointError(
                f"{index} says {file!r:.60} for {name}", allowed="the name of a file beside it"
            )
        # A link of the folder is followed: the hub's cache is made of them.
        if file in ("", ".", "..") or Path(file).name != file or "\\" in file:
            raise CheckpointError(
                f"the shard {file!r} is not a file of the folder",
                where=str(index),
                allowed="names of files beside the index, without folders",
            )
    return weight_map


def _read_shards(folder: Path, index: Path) -> dict[str, Tensor]:
    weight_map = _weight_map(index)
    files = list(dict.fromkeys(weight_map.values()))
    gone = [file for file in files if not (folder / file).exists()]
    if gone:
        raise CheckpointError(
            f"the shard{'s'[: len(gone) > 1]} {some(gone)} {'are' if len(gone) > 1 else 'is'} "
            "missing",
            where=str(index),
        )
    weights: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in _read(folder / file).items():
            _add(weights, name, tensor, folder / file)
    absent = [name for name in weight_map if name not in weights]
    if absent:
        raise CheckpointError(f"the shards lack {some(absent)}", where=str(index))
    return weights


def _plain_names(weights: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Weights without what wrappers add to names: ``_orig_mod.`` anywhere, ``module.`` in front."""
    named: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not tensor.dtype.is_floating_point or tensor.layout != torch.strided or tensor.is_meta:
            kind = "without data" if tensor.is_meta else f"{tensor.dtype}".removeprefix("torch.")
            raise CheckpointError(
                f"{name} is {kind}{'' if tensor.layout == torch.strided else ', sparse'}",
                where=str(where),
                allowed="weights of a floating-point type; quantized ones are not known here",
                way_out="the model's weights as they were before quantization",
            )
        _add(named, _WRAPPERS.sub("", name), tensor, where)
    return named


def _add(weights: dict[str, Tensor], name: str, tensor: Tensor, where: Path) -> None:
    """Add a tensor; one that is there already must be the same."""
    there = weights.setdefault(name, tensor)
    same = there.dtype == tensor.dtype and torch.equal(there, tensor)
    if there is not tensor and not same:
        raise CheckpointError(
            f"{name} is stored twice, with different values",
            where=str(where),
            way_out="remove the file that is out of date, or download the folder again",
        )


def _read(path: Path) -> dict[str, Tensor]:
    weights = _tensors(path)
    check_finite_weights(weights.items(), str(path), "download the file again")
    return weights


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not all(isinstance(tensor, Tensor) for tensor in weights.values()):
            raise ValueError("there are values that are not tensors")
    except Exception as error:  # zip, pickle, storage and safetensors' errors have no common class
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        reason, way_out = not_the_content(path) or (
            said,
            "download the file again, or convert it to safetensors",
        )
        raise CheckpointError(
            f"{path} is truncated or corrupt, or holds more than tensors: {reason}",
            allowed="tensors only; pickled code is never run",
            way_out=way_out,
        ) from error
    return weights
