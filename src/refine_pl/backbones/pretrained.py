"""Published checkpoints: a Hugging Face folder in, the same layout out.

Weights are data here: nothing of a checkpoint is ever run.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor

from refine_kernels.backends import Backend
from refine_pl.backbones.base import FastWeightLM
from refine_pl.backbones.common_fields import NO_EFFECT, OFF, check_language_model, is_off
from refine_pl.backbones.not_yet import not_yet
from refine_pl.backbones.options import require
from refine_pl.backbones.stack import MODELS, StackedLM
from refine_pl.backbones.stored_names import some, sort_weights
from refine_pl.backbones.weight_files import CONFIG, find_folder, read_json, read_weights
from refine_pl.checksums import write_checksums
from refine_pl.errors import CheckpointError, ConfigError, did_you_mean
from refine_pl.whole_files import filled_folder


def load_pretrained(
    path_or_name: str,
    revision: str | None = None,
    activation_checkpointing: bool = False,
    backend: Backend = "auto",
) -> FastWeightLM:
    """A model with published weights, in float32.

    Args:
        path_or_name: a folder with ``config.json`` and weights; or a name on the hub,
            ``owner/model``, or ``owner/model/folder`` where a repository holds several models.
        revision: branch, tag or commit on the hub.
        activation_checkpointing: keep only each block's input for the backward pass.
        backend: of the kind of model's main operation; fla and triton are of the delta rule alone,
            compiled one of LaCT.

    Raises:
        CheckpointError: nothing there, another kind of model, options or weights that do not fit.
        ConfigError: the model has no such backend.
    """
    folder = find_folder(path_or_name, revision)
    config = read_json(folder / CONFIG)
    cls = model_class(config, folder / CONFIG)
    hints = get_type_hints(cls.options_class)
    allowed = get_args(hints.get("backend", Literal["auto"]))
    if backend not in allowed:
        raise ConfigError(f"{cls.__name__} has no backend {backend!r}", allowed=", ".join(allowed))
    own: dict[str, Any] = {"backend": backend} if "backend" in hints else {}
    own["activation_checkpointing"] = activation_checkpointing
    policy = build(config, folder / CONFIG, **own)
    weights, policy.carried = sort_weights(cls.options_class, read_weights(folder), folder)
    weights = policy.fitted(weights)
    if policy.tied:
        _tie(weights, f"model.{cls.embeddings_name}.weight", folder)
    load_weights(policy, weights, folder).requires_grad_(True)
    local = Path(path_or_name).expanduser()
    policy.loaded_from = (str(local.resolve()) if local.is_dir() else path_or_name, revision)
    return policy


def load_weights(policy: StackedLM, weights: Mapping[str, Tensor], where: Path | str) -> StackedLM:
    """The policy, made on the meta device, with these very tensors as its weights.

    Raises:
        CheckpointError: listing what is missing, unexpected or of another shape; ``where`` it is.
    """
    expected = policy.state_dict()
    found = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "of another shape": [
            f"{name} {list(weights[name].shape)}, expected {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
    }
    problems = [f"{len(names)} {kind}: {some(names)}" for kind, names in found.items() if names]
    if problems:
        raise CheckpointError(
            f"the weights do not fit {type(policy).__name__} as its configuration describes it: "
            + "; ".join(problems),
            where=str(where),
            way_out="check that config.json belongs to these weights",
        )
    policy.load_state_dict(weights, assign=True)
    if policy.tied:
        policy.tie()
    return policy


def build(config: Mapping[str, Any], where: Path | str, **options: Any) -> StackedLM:
    """The model that a configuration describes, on the meta device: without any weights.

    ``where`` is the file, for messages; ``options`` are those that are not published.

    Raises:
        CheckpointError: another kind of model, or options that it does not have.
    """
    cls = model_class(config, where)
    try:
        with torch.device("meta"):  # no random weights are drawn, no memory is taken twice
            return cls(**class_fields(config, where) | options)
    except ConfigError as error:
        raise CheckpointError(
            error.what, where=str(where), allowed=error.allowed, way_out=error.way_out
        ) from error


def save_pretrained(
    policy: FastWeightLM,
    folder: str | Path,
    beside: Callable[[str], object] | None = None,
) -> list[str]:
    """Write ``config.json`` and safetensors in the published layout; the names of the files.

    ``checksums.json`` has their digests. Weights keep their type. The folder is made if it is not
    there. A folder with ``config.json`` is complete, whatever ends the process before.

    Args:
        policy: the model.
        folder: where to write.
        beside: writes further files into the folder that it is given, such as the tokenizer's.

    Raises:
        CheckpointError: the folder holds a model already.
        WriteError: the folder cannot be written, or the disk is full.
    """
    from huggingface_hub import save_torch_state_dict

    folder = Path(folder)
    if (folder / CONFIG).exists():
        raise CheckpointError(
            f"{folder} already holds a model",
            allowed="a folder without config.json",
            way_out="choose another folder, or remove this one",
        )
    weights = {name: t.detach().cpu().contiguous() for name, t in policy.state_dict().items()}
    if getattr(policy, "tied", False):
        del weights["lm_head.weight"]
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    config = {**policy.config(), "torch_dtype": dtype}
    if isinstance(policy, StackedLM):
        weights = policy.published(weights) | policy.carried
    with filled_folder(folder, last=CONFIG) as scratch:
        save_torch_state_dict(weights, scratch)
        if beside is not None:
            beside(str(scratch))
        (scratch / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        written = {path.name for path in scratch.iterdir() if path.is_file()}
        return sorted({*written, write_checksums(scratch, written).name})


def model_class(config: Mapping[str, Any], where: Path | str) -> Any:
    """The class for a configuration's ``model_type``.

    Raises:
        CheckpointError: there is none.
    """
    kind = config.get("model_type")
    cls = MODELS.get(kind) if isinstance(kind, str) else None
    known = None if cls is None else inspect.signature(cls.options_class).parameters
    if (what := not_yet(config, known)) is not None:
        raise CheckpointError(
            f"model_type {kind!r:.60} is {what}, which is not supported yet",
            where=str(where),
            allowed=", ".join(sorted(MODELS)),
        )
    if cls is None:
        raise CheckpointError(
            f"model_type {kind!r:.60} is not a fast-weight model that is known here",
            where=str(where),
            allowed=", ".join(sorted(MODELS)),
            way_out=did_you_mean(str(kind), MODELS.keys()),
        )
    return cls


def class_fields(config: Mapping[str, Any], where: Path | str) -> dict[str, Any]:
    """The arguments that a configuration gives to its class; what that does not know must be off.

    Raises:
        CheckpointError: an option is on that the class does not know.
        ConfigError: a field has a value that the class would get wrong.
    """
    cls = model_class(config, where)
    options = cls.options_class
    config = options.unfolded(config)
    known = inspect.signature(options).parameters
    given: dict[str, Any] = {}
    idle: dict[str, Any] = {}
    check_language_model(config, where)
    off: list[str] = []
    unknown: list[str] = []
    for name, value in config.items():
        if name in known:
            given[name] = value
        elif name in options.fixed:
            require(name, value, *options.fixed[name])
        elif name in options.without_effect:
            if value != options.without_effect[name]:
                idle[name] = value
        elif name in options.kept:
            idle[name] = value
        elif name not in NO_EFFECT | OFF:
            (off if is_off(value) else unknown).append(name)  # what was never on changes nothing
    if unknown:
        listed = ", ".join(f"{name}={config[name]!r:.60}" for name in unknown)
        published = {*known, *options.fixed, *options.without_effect, *options.kept}
        raise CheckpointError(
            f"{cls.__name__} does not know {listed}, which may change what it computes",
            where=str(where),
            allowed="the published options of this model_type",
            way_out=did_you_mean(unknown[0], published, "remove it if it has no effect"),
        )
    if off:
        warnings.warn(
            f"{where}: {cls.__name__} does not know {', '.join(off)}; they are off there",
            stacklevel=3,
        )
    return given | {"idle": idle} if idle else given


def _tie(weights: dict[str, Tensor], name: str, where: Path | str) -> None:
    """Give the head the embeddings of this ``name``; a stored head must be the same."""
    embeddings = weights.get(name)
    if embeddings is None:
        return
    head = weights.setdefault("lm_head.weight", embeddings)
    if head.shape != embeddings.shape or not torch.equal(head, embeddings):
        raise CheckpointError(
            f"tie_word_embeddings is true, but lm_head.weight is not {name}",
            where=str(where),
            way_out="set tie_word_embeddings to false in config.json if the head is its own",
        )
