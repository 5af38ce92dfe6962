"""Published checkpoints: a Hugging Face folder in, the same layout out.

Weights are data here: nothing of a checkpoint is ever run.
"""

from __future__ import annotations

import importlib
import inspect
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refine_kernels.backends import Backend
from refine_pl.backbones.base import FastWeightLM
from refine_pl.errors import CheckpointError, nearest

# model_type: where the class is
CLASSES = {
    "delta_net": "refine_pl.backbones.delta_net.DeltaNet",
    "gated_deltanet": "refine_pl.backbones.gated_delta_net.GatedDeltaNet",
    "lact_swiglu": "refine_pl.backbones.lact.LaCT",
}

# What every configuration file may carry, and no model here reads.
_BOOKKEEPING = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "model_type",
    "torch_dtype",
    "transformers_version",
}
_SAFETENSORS, _BIN = "model.safetensors", "pytorch_model.bin"


def load_pretrained(
    path_or_name: str,
    revision: str | None = None,
    activation_checkpointing: bool = False,
    backend: Backend = "auto",
) -> FastWeightLM:
    """A model with published weights, in float32.

    Args:
        path_or_name: a folder with ``config.json`` and weights, or a name on the hub.
        revision: branch, tag or commit on the hub.
        activation_checkpointing: keep only each block's input for the backward pass.
        backend: of the recurrence.

    Raises:
        CheckpointError: nothing there, another kind of model, options or weights that do not fit.
    """
    folder = _folder(path_or_name, revision)
    config = _read_json(folder / "config.json")
    policy = build(
        config,
        folder / "config.json",
        activation_checkpointing=activation_checkpointing,
        backend=backend,
    )
    weights = {name: tensor.float() for name, tensor in _read_weights(folder).items()}
    if getattr(policy, "tied", False):
        weights.setdefault("lm_head.weight", weights.get("model.embeddings.weight", Tensor()))
    check_weights(policy, weights, folder)
    policy.load_state_dict(weights, assign=True)
    if getattr(policy, "tied", False):
        policy.tie()
    return policy.requires_grad_(True)


def build(config: Mapping[str, Any], where: Path | str, **options: Any) -> Any:
    """The model that a configuration describes, on the meta device: without any weights.

    Args:
        config: published fields, ``model_type`` among them.
        where: the file, for messages.
        options: arguments that are not published.

    Raises:
        CheckpointError: another kind of model, or options that it does not have.
    """
    cls = model_class(config, where)
    fields = _options(cls, config, where)
    with torch.device("meta"):  # no random weights are drawn, no memory is taken twice
        return cls(**fields, **options)


def save_pretrained(policy: FastWeightLM, folder: str | Path) -> list[str]:
    """Write ``config.json`` and safetensors in the published layout.

    Args:
        policy: the model; weights keep their type.
        folder: is made if it is not there.

    Returns:
        The names of the files.

    Raises:
        CheckpointError: the folder holds a model already.
    """
    from huggingface_hub import save_torch_state_dict

    folder = Path(folder)
    if (folder / "config.json").exists():
        raise CheckpointError(
            f"{folder} already holds a model",
            allowed="a folder without config.json",
            way_out="choose another folder, or remove this one",
        )
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: t.detach().cpu().contiguous() for name, t in policy.state_dict().items()}
    if getattr(policy, "tied", False):
        del weights["lm_head.weight"]
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    # Weights first: a folder with config.json is complete.
    save_torch_state_dict(weights, folder)
    config = {**policy.config(), "torch_dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return sorted(path.name for path in folder.iterdir())


def model_class(config: Mapping[str, Any], where: Path | str) -> Any:
    """The class for a configuration's ``model_type``.

    Raises:
        CheckpointError: there is none.
    """
    kind = config.get("model_type")
    if kind not in CLASSES:
        close = nearest(str(kind), CLASSES)
        raise CheckpointError(
            f"model_type {kind!r} is no fast-weight model that is known here",
            where=str(where),
            allowed=", ".join(sorted(CLASSES)),
            way_out=f"did you mean {close}?" if close else None,
        )
    module, name = CLASSES[kind].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def check_weights(policy: FastWeightLM, weights: Mapping[str, Tensor], where: Path | str) -> None:
    """Every key and every shape of ``weights`` must be the policy's.

    Raises:
        CheckpointError: listing what is missing, unexpected or misshapen.
    """
    expected = policy.state_dict()
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    misshapen = [
        f"{name} {list(weights[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    problems = [
        f"{len(names)} {kind}: {_some(names)}"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"the weights do not fit {type(policy).__name__} as its configuration describes it: "
            + "; ".join(problems),
            where=str(where),
            way_out="check that config.json belongs to these weights",
        )


def _some(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _folder(path_or_name: str, revision: str | None) -> Path:
    folder = Path(path_or_name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or path_or_name.startswith((".", "/", "~")) or path_or_name.count("/") > 1:
        raise CheckpointError(
            f"{path_or_name} is no folder",
            allowed="a folder with config.json and weights, or a name on the hub (owner/model)",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*"]
    try:
        return Path(snapshot_download(path_or_name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{path_or_name} is neither a folder here nor to be had from the hub",
            where=str(error).splitlines()[0][:200],
            allowed="a folder with config.json and weights, or a name on the hub (owner/model)",
            way_out="download it first, and give the folder",
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
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
        raise CheckpointError(f"{path} holds no mapping but a {type(value).__name__}")
    return value


def _options(cls: Any, config: Mapping[str, Any], where: Path | str) -> dict[str, Any]:
    """The fields that the class takes; what it does not know must have no effect."""
    known = set(inspect.signature(cls).parameters)
    options = {name: value for name, value in config.items() if name in known}
    idle: list[str] = []
    unknown: list[str] = []
    for name, value in config.items():
        if name in known or name in _BOOKKEEPING:
            continue
        # None, False and empty turn an option off; what was never on changes nothing.
        (unknown if value or (value == 0 and value is not False) else idle).append(name)
    if unknown:
        listed = ", ".join(f"{name}={config[name]!r}" for name in unknown)
        close = nearest(unknown[0], known)
        raise CheckpointError(
            f"{cls.__name__} does not know {listed}, which may change what it computes",
            where=str(where),
            allowed="the published options of this model_type",
            way_out=f"did you mean {close}?" if close else "remove it if it has no effect",
        )
    if idle:
        warnings.warn(
            f"{where}: {cls.__name__} does not know {', '.join(idle)}; they are off there",
            stacklevel=3,
        )
    return options


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, whichever way they are stored."""
    for name, read in ((_SAFETENSORS, _read_safetensors), (_BIN, _read_bin)):
        index = folder / f"{name}.index.json"
        if index.exists():
            shards = _read_json(index).get("weight_map", {})
            return _read_shards(folder, shards, read, index)
        if (folder / name).exists():
            return read(folder / name)
    raise CheckpointError(
        f"there are no weights in {folder}",
        allowed=f"{_SAFETENSORS} or {_BIN}, in one file or with an index of shards",
    )


def _read_shards(
    folder: Path, weight_map: Mapping[str, str], read: Any, index: Path
) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file in dict.fromkeys(weight_map.values()):
        if not (folder / file).exists():
            raise CheckpointError(f"the shard {file} is missing", where=str(index))
        weights |= read(folder / file)
    absent = [name for name in weight_map if name not in weights]
    if absent:
        raise CheckpointError(f"the shards lack {_some(absent)}", where=str(index))
    return weights


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or corrupt: {error}", way_out="download the file again"
        ) from error


def _read_bin(path: Path) -> dict[str, Tensor]:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # zip, pickle and storage errors have no common class
        raise CheckpointError(
            f"{path} cannot be read as weights: {str(error).splitlines()[0][:200]}",
            allowed="tensors only; pickled code is never run",
            way_out="convert it to safetensors",
        ) from error
    if not _is_state_dict(value):
        raise CheckpointError(f"{path} holds no state dictionary")
    return value


def _is_state_dict(value: Any) -> bool:
    items: Iterable = value.items() if isinstance(value, Mapping) else [(None, None)]
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in items)
