"""What an evaluation was made with: enough to repeat it, and to refuse to mix two of them."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

CARD = "card.json"

PACKAGES = ("refine-pl", "torch", "lightning", "transformers")

# What two sessions of one evaluation must share. ``model.source`` is not among them: the same
# weights may lie in another place.
SHARED = (
    *("stage", "precision", "model.weights_hash", "decoding", "data.hash", "rules"),
    "test_time_training",
)


def versions() -> dict[str, str | None]:
    """Of Python, and of the packages that a result may depend on; None where one is missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


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


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What the two cards disagree in although they should not, one text each.

    A part that ``now`` does not have yet is not compared.
    """
    found = []
    for key in SHARED:
        here = _part(now, key)
        if here is _ABSENT:
            continue
        before_it = _part(earlier, key)
        if (here is None) != (before_it is None):
            found.append(f"{key} was {_word(before_it)}, is {_word(here)}")
            continue
        there = dict(_leaves(before_it, key))
        leaves = dict(_leaves(json.loads(json.dumps(here)), key))
        for name in sorted({*there, *leaves}):
            before, after = there.get(name, "absent"), leaves.get(name, "absent")
            if before != after:
                found.append(f"{name} was {before}, is {after}")
    return found


_ABSENT = object()


def _part(card: Mapping[str, Any], key: str) -> Any:
    value: Any = card
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return _ABSENT
        value = value[name]
    return value


def _word(part: Any) -> str:
    return "none" if part is None else "given"


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if value is _ABSENT:
        return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}")
        return
    yield key, "none" if value is None else value
