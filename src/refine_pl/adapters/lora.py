"""LoRA (arXiv 2106.09685) on a policy, by ``peft``: W x becomes W x + (alpha / r) B A x.

W stays as it is and gets no gradient; only A ``[r, in]`` and B ``[out, r]`` are trained. peft puts
its own layers into the model in place, so that forks, states and trails are computed as before.
"""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from refine_pl.adapters.targets import kinds_with_state, linear_maps, resolve
from refine_pl.backbones import FastWeightLM
from refine_pl.backbones.weight_files import weights_hash
from refine_pl.errors import ConfigError, did_you_mean

_HOME = "peft.tuners.lora.config.LoraConfig"

# What is kept of a configuration. All other options must be left as they are.
OPTIONS = (
    *("r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform"),
    *("use_rslora", "use_dora", "init_lora_weights", "rank_pattern", "alpha_pattern"),
)
_LABELS = (
    *("peft_type", "task_type", "peft_version", "auto_mapping"),
    *("base_model_name_or_path", "revision", "_custom_modules"),
)
_STARTS = (True, False, "gaussian", "orthogonal")
_WHY_NOT = {
    "lora_dropout": "rollouts, the update and a repeated pass would each read another model",
    "bias": "biases of the base stay as they are",
    "modules_to_save": "the base stays as it is; embeddings and the head are not trained",
    "inference_mode": "nothing would be trained",
    "init_lora_weights": "it would change the base",
}


class Adapter(ABC):
    """What ``model.adapter`` takes: ``peft.LoraConfig``, a class of the optional package peft.

    Attributes:
        elsewhere: import paths of what fits, for messages; nothing is imported for them.
    """

    elsewhere: ClassVar = ("peft.LoraConfig",)

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All options."""

    @classmethod
    def __subclasshook__(cls, other: type) -> Any:
        fits = cls is Adapter and f"{other.__module__}.{other.__qualname__}" == _HOME
        return True if fits else NotImplemented


@dataclass(frozen=True, slots=True)
class Attached:
    """An adapter that is part of a policy.

    Args:
        config: peft's, with the full names of the maps that it reaches.
        reached: how many linear maps of each kind of layer it reaches, and how many there are.
        base: where the frozen weights were loaded from, and their digest; None if they were made.
        has_state: whether a layer is reached that carries a state of fixed size.
    """

    config: Any
    reached: dict[str, tuple[int, int]]
    base: dict[str, Any] | None
    has_state: bool

    def describe(self, policy: nn.Module) -> str:
        """What is trained, for people."""
        counts = ", ".join(f"{kind} {n:,} of {of:,}" for kind, (n, of) in self.reached.items())
        trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
        total = sum(p.numel() for p in policy.parameters())
        text = (
            f"adapter: LoRA, rank {self.config.r}, {trained:,} of {total:,} parameters are trained "
            f"({trained / total:.2%}); linear maps: {counts}"
        )
        if not self.has_state:
            text += (
                "\nwarning: the adapter reaches no layer that carries a state of fixed size: what "
                "is written into the states, and how it is read, stays as it is"
            )
        return text


def load_peft() -> Any:
    """The package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            f"adapters need the package peft, which cannot be imported: {error}",
            where="model.adapter",
            way_out="pip install 'refine-pl[lora]'",
        ) from error
    return peft


def make_config(options: dict[str, Any]) -> Any:
    """A ``peft.LoraConfig`` of some of the :data:`OPTIONS`.

    Raises:
        ConfigError: another option, or peft refuses one.
    """
    for name in options:
        if name not in OPTIONS:
            raise ConfigError(
                f"{name} is not an option of adapters here",
                where="model.adapter",
                allowed=", ".join(OPTIONS),
                way_out=did_you_mean(name, OPTIONS),
            )
    try:
        return load_peft().LoraConfig(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"peft refuses the adapter: {error}", where="model.adapter") from error


def attach(policy: FastWeightLM, config: Any) -> Attached:
    """Put an adapter into a policy, and freeze everything else.

    Args:
        policy: changed in place.
        config: a ``peft.LoraConfig``; its target modules may also be kinds of layers.

    Raises:
        ConfigError: an option that is not supported, a name that fits nothing, or peft refuses.
    """
    peft = load_peft()
    _check(config)
    if any(isinstance(m, peft.tuners.lora.LoraLayer) for m in policy.modules()):
        raise ConfigError("the model has an adapter already", where="model.adapter")
    maps, names = linear_maps(policy), resolve(policy, config)
    own = copy.copy(config)
    own.target_modules, own.exclude_modules, own.layers_to_transform = set(names), None, None
    base = None
    if policy.loaded_from is not None:
        path, revision = policy.loaded_from
        digest = weights_hash(policy)
        base = {"path": path, "revision": revision, "weights_hash": digest}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the base of another library would need
            peft.inject_adapter_in_model(copy.copy(own), policy)  # it shortens long lists
    except (TypeError, ValueError) as error:
        raise ConfigError(f"peft refuses the adapter: {error}", where="model.adapter") from error
    there, found = Counter(maps.values()), Counter(maps[name] for name in names)
    reached = {kind: (found[kind], number) for kind, number in there.items()}
    has_state = any(found[kind] for kind in kinds_with_state(policy))
    return Attached(own, reached, base, has_state)


def merged(policy: FastWeightLM) -> FastWeightLM:
    """The policy with its adapter added to the weights: a model as if it had been trained whole.

    Args:
        policy: changed in place.

    Raises:
        ConfigError: the sums are not finite.
    """
    layer_class = load_peft().tuners.lora.LoraLayer
    for name, module in list(policy.named_modules()):
        if not isinstance(module, layer_class):
            continue
        with torch.no_grad():
            try:
                module.merge(safe_merge=True)
            except ValueError as error:
                raise ConfigError(f"{name} cannot be merged: {error}") from error
        parent, _, last = name.rpartition(".")
        setattr(policy.get_submodule(parent), last, module.get_base_layer())
    return policy.requires_grad_(True)


def _check(config: Any) -> None:
    """Refuse options that the method here, or the way adapters are kept, does not allow for."""
    if not isinstance(config, Adapter):
        raise ConfigError(
            f"the adapter is a {type(config).__name__}",
            where="model.adapter",
            allowed="a peft.LoraConfig",
        )
    usual = vars(type(config)())
    for name, value in vars(config).items():
        if name in (*OPTIONS, *_LABELS) or value == usual.get(name):
            continue
        raise _unsupported(name, value)
    start = vars(config)["init_lora_weights"]
    if start not in _STARTS:
        raise _unsupported("init_lora_weights", start)


def _unsupported(name: str, value: Any) -> ConfigError:
    starts = "true, false, gaussian, orthogonal" if name == "init_lora_weights" else "its default"
    return ConfigError(
        f"{name}={value!r:.60} is not supported"
        + (f": {_WHY_NOT[name]}" if name in _WHY_NOT else ""),
        where=f"model.adapter.init_args.{name}",
        allowed=starts,
    )
