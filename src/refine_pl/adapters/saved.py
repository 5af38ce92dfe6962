"""Adapters in training checkpoints.

Where the base was loaded, a checkpoint holds the adapter alone, and says where the base is and
what its weights are: a digest of all of them must be the same when the run goes on. Where the base
was made by the run, the checkpoint holds both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from refine_pl.adapters.lora import OPTIONS, Attached, attach, make_config
from refine_pl.backbones import FastWeightLM, load_pretrained
from refine_pl.backbones.pretrained import build, load_weights
from refine_pl.errors import CheckpointError, UserError

KEY = "adapter"
_MODELS = ("policy", "reference", "yardstick")


def saved_adapter(attached: Attached) -> dict[str, Any]:
    """What a checkpoint says of an adapter; plain values."""
    usual = vars(type(attached.config)())
    own = {name: getattr(attached.config, name) for name in OPTIONS}
    config = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in own.items()
        if name == "r" or value != usual[name]
    }
    return {"config": config, "base": attached.base}


def plain_adapter(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The ``class_path`` of an adapter with those of its ``init_args`` that are kept."""
    given = dict(spec.get("init_args") or {})
    return {
        "class_path": spec["class_path"],
        "init_args": {name: given[name] for name in OPTIONS if name in given},
    }


def adapter_of(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the project's own part of a checkpoint says of its adapter, if it has one.

    Raises:
        CheckpointError: it is something else.
    """
    found = state.get(KEY)
    if found is None:
        return None
    base = found.get("base") if isinstance(found, Mapping) else 0
    parts = isinstance(found, Mapping) and isinstance(found.get("config"), dict)
    known = isinstance(base, Mapping) and {"path", "revision", "weights_hash"} <= base.keys()
    if not parts or not (base is None or known):
        raise CheckpointError("what the checkpoint says of its adapter is damaged")
    return dict(found)


def without_base(state: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """A module's state without the weights that its base is loaded with."""
    frozen = _frozen(module)
    return {name: value for name, value in state.items() if name not in frozen}


def with_base(
    state: Mapping[str, Any],
    module: nn.Module,
    saved: Mapping[str, Any] | None,
    attached: Attached | None,
) -> Mapping[str, Any]:
    """A checkpoint's weights, with the module's own base where they hold none.

    Args:
        state: of the checkpoint.
        module: with ``policy`` and maybe frozen copies of it; its base is loaded.
        saved: what :func:`adapter_of` found.
        attached: the module's adapter.

    Raises:
        CheckpointError: one of both has no adapter, or they are of other options, or of another
            base.
    """
    if saved is None and attached is None:
        return state
    if saved is None or attached is None:
        raise CheckpointError(
            "the checkpoint has an adapter, and this model has none"
            if attached is None
            else "this model has an adapter, and the checkpoint has none",
            where="model.adapter",
            way_out="`refine-pl export --merge` the checkpoint, and give the folder as "
            "model.pretrained"
            if attached is None
            else "`refine-pl export` the checkpoint, and give the folder as model.pretrained: an "
            "adapter begins on weights that are loaded",
        )
    before, now = saved["config"], saved_adapter(attached)["config"]
    differ = [n for n in OPTIONS if n != "init_lora_weights" and before.get(n) != now.get(n)]
    if differ:
        said = "; ".join(f"{n} was {before.get(n)!r:.80}, is {now.get(n)!r:.80}" for n in differ)
        raise CheckpointError(
            f"the adapter of the checkpoint has other options: {said}",
            where="model.adapter.init_args",
            way_out="leave model.adapter out: the checkpoint knows its own",
        )
    if saved["base"] is None:
        return state
    _check_base(saved["base"], attached)
    own = module.state_dict()
    return {**{name: own[name] for name in _frozen(module) if name in own}, **state}


def restored(
    config: Mapping[str, Any],
    saved: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    where: str,
    folder: str | None = None,
) -> tuple[FastWeightLM, Attached]:
    """The policy of a checkpoint with an adapter.

    Args:
        config: of the base, under its published names.
        saved: what :func:`adapter_of` found.
        weights: of the policy in the checkpoint.
        where: the checkpoint is.
        folder: where the base is now, if it is not where it was.

    Raises:
        UserError: the base is not there, or is another one; or the weights do not fit.
    """
    if saved["base"] is None:
        of_base = {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in weights.items()
            if ".lora_" not in name
        }
        policy: FastWeightLM = load_weights(build(config, where), of_base, where)
    else:
        policy = _loaded(saved["base"], folder)
    try:
        attached = attach(policy, make_config(saved["config"]))
    except UserError as error:
        raise CheckpointError(error.what, where=where, way_out=error.way_out) from error
    if saved["base"] is not None:
        _check_base(saved["base"], attached)
    trained = {n: t for n, t in weights.items() if ".lora_" in n}
    there = {name for name in policy.state_dict() if ".lora_" in name}
    if there != set(trained):
        raise CheckpointError("the adapter's weights do not fit its options", where=where)
    policy.load_state_dict(trained, strict=False)
    return policy, attached


def _loaded(base: Mapping[str, Any], folder: str | None) -> FastWeightLM:
    try:
        if folder is not None:
            return load_pretrained(folder)
        return load_pretrained(str(base["path"]), base["revision"])
    except CheckpointError as error:
        raise CheckpointError(
            f"the adapter was trained on {base['path']}, which cannot be loaded: {error.what}",
            where=error.where,
            way_out="--base FOLDER, where the same weights are now",
        ) from error


def _check_base(base: Mapping[str, Any], attached: Attached) -> None:
    found = attached.base or {"path": "a model that was made", "weights_hash": None}
    if base["weights_hash"] != found["weights_hash"]:
        raise CheckpointError(
            f"the adapter was trained on other weights than those of {found['path']}",
            where=f"the weights of {base['path']} had the digest {base['weights_hash']}, these "
            f"have {found['weights_hash']}",
            way_out="model.pretrained: the folder with the weights that it was trained on",
        )


def _frozen(module: nn.Module) -> set[str]:
    """The names of weights that are never trained, tied ones under each of their names."""
    return {
        f"{model}.{name}"
        for model in _MODELS
        if (policy := getattr(module, model, None)) is not None
        for name, p in policy.named_parameters(remove_duplicate=False)
        if not p.requires_grad and ".lora_" not in name
    }
