"""Which linear maps of a model an adapter reaches, by the kind of their layer.

Only the linear maps inside of blocks are counted: embeddings and the head stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from refine_pl.backbones import FastWeightLM
from refine_pl.backbones.stack import Block, Mixer
from refine_pl.errors import ConfigError, did_you_mean

ALL = "all-linear"
MLP = "mlp"
_KEY = "model.adapter.init_args"


def linear_maps(policy: FastWeightLM) -> dict[str, str]:
    """The kind of layer of every linear map inside of a block, by the map's full name."""
    kinds: dict[str, str] = {}
    for place, block in policy.named_modules():
        if not isinstance(block, Block):
            continue
        for name, module in block.named_modules(prefix=place):
            if isinstance(module, nn.Linear):
                kinds[name] = MLP
        for name, mixer in block.named_modules(prefix=place):
            if isinstance(mixer, Mixer):
                inside = mixer.named_modules(prefix=name)
                kinds |= {n: mixer.kind for n, m in inside if isinstance(m, nn.Linear)}
    return kinds


def kinds_with_state(policy: FastWeightLM) -> set[str]:
    """The kinds of layers that carry a state of fixed size."""
    mixers = (m for m in policy.modules() if isinstance(m, Mixer))
    return {mixer.kind for mixer in mixers if mixer.has_fixed_state}


def resolve(policy: FastWeightLM, config: Any) -> list[str]:
    """The full names of the maps that a ``peft.LoraConfig`` names, in the model's order.

    ``target_modules`` and ``exclude_modules`` take what peft takes: a list of names, each a full
    one or its end, or one regular expression of full names; and kinds of layers (``delta_rule``,
    ``attention``, ``lact``, ``mlp``) beside or instead of them. All linear maps if left out.

    Raises:
        ConfigError: a name fits no linear map of the model, or nothing is left.
    """
    maps = linear_maps(policy)
    wanted = _named(maps, config.target_modules or ALL, "target_modules")
    left_out = _named(maps, config.exclude_modules or [], "exclude_modules")
    layers = config.layers_to_transform
    found = [name for name in maps if name in wanted and name not in left_out]
    if layers is not None:
        numbers = {layers} if isinstance(layers, int) else set(layers)
        found = [name for name in found if _layer(name) in numbers]
    if not found:
        raise ConfigError(
            "the adapter reaches no linear map of the model",
            where=_KEY,
            allowed=_what_there_is(maps),
        )
    return found


def _layer(name: str) -> int:
    """The number of the block that a map is in."""
    return int(next((part for part in name.split(".") if part.isdigit()), -1))


def _named(maps: Mapping[str, str], names: Any, option: str) -> set[str]:
    if names == ALL:
        return set(maps)
    kinds = set(maps.values())
    if isinstance(names, str) and names not in kinds:
        try:
            found = {name for name in maps if re.fullmatch(names, name)}
        except re.error as error:
            raise ConfigError(
                f"{option} is {names!r}, which is not a regular expression: {error}",
                where=f"{_KEY}.{option}",
                allowed=_what_there_is(maps),
            ) from error
        return found or _refuse(maps, names, option)
    return {name for word in _words(names) for name in _of_word(maps, kinds, word, option)}


def _words(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else sorted(names)


def _of_word(maps: Mapping[str, str], kinds: set[str], word: str, option: str) -> set[str]:
    if word in kinds:
        return {name for name, kind in maps.items() if kind == word}
    return {n for n in maps if f".{n}".endswith(f".{word}")} or _refuse(maps, word, option)


def _refuse(maps: Mapping[str, str], word: str, option: str) -> set[str]:
    ends = {name.rpartition(".")[2] for name in maps}
    raise ConfigError(
        f"{option} has {word!r}, and no linear map of the model is called that",
        where=f"{_KEY}.{option}",
        allowed=_what_there_is(maps),
        way_out=did_you_mean(word, sorted({*maps.values(), *ends, ALL})),
    )


def _what_there_is(maps: Mapping[str, str]) -> str:
    """The kinds of layers and the ends of the names of their maps, for messages."""
    ends: dict[str, list[str]] = {}
    for name, kind in maps.items():
        known = ends.setdefault(kind, [])
        if (end := name.rpartition(".")[2]) not in known:
            known.append(end)
    said = "; ".join(f"{kind} ({', '.join(names)})" for kind, names in ends.items())
    return f"{ALL}, or kinds of layers, or names of their maps: {said}"
