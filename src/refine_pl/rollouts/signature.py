"""What has to stay the same between draws, so that recorded operations fit the next one too.

A recording reads addresses and has every Python value of its moment in it. What is not in a tensor
that is copied for each draw is therefore in the signature.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}


def form_of(record: object) -> Hashable:
    """Types, shapes and plain values of a record: all but the numbers in its tensors.

    Raises:
        TypeError: something is in it whose tensors could not be found.
    """
    if isinstance(record, Tensor):
        return record.shape, record.dtype, record.device
    if isinstance(record, _PLAIN):
        return record
    if isinstance(record, tuple):
        return type(record), tuple(map(form_of, record))
    if is_dataclass(record) and not isinstance(record, type):
        return type(record), tuple(form_of(getattr(record, f.name)) for f in fields(record))
    raise TypeError(f"a state holds a {type(record).__name__}")


def surroundings_of(policy: nn.Module, device: torch.device) -> Hashable:
    """Addresses of a model's weights, settings of its modules, and torch's own settings.

    Weights that are changed where they lie change nothing here.
    """
    kind = device.type
    weights = tuple(map(_address, chain(policy.parameters(), policy.buffers())))
    settings = (
        torch.is_autocast_enabled(kind),
        torch.get_autocast_dtype(kind),
        torch.is_autocast_cache_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
    )
    return settings, weights, tuple(map(_settings, policy.modules()))


def _address(x: Tensor) -> Hashable:
    return x.data_ptr(), x.shape, x.stride(), x.dtype


def _settings(module: nn.Module) -> Hashable:
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    own = {k: v for k, v in vars(module).items() if k not in _OF_EVERY_MODULE}
    # Hooks before a pass may make weights anew each time; that is recorded with the pass.
    values = tuple(_values(own, with_tensors=not module._forward_pre_hooks))
    return type(module), values, tuple(map(id, hooks))


def _values(values: dict[str, Any], with_tensors: bool) -> Iterator[Hashable]:
    for name, value in values.items():
        if isinstance(value, Tensor):
            if with_tensors:
                yield name, _address(value)
        elif isinstance(value, _PLAIN):
            yield name, value
        elif isinstance(value, list | tuple | set | dict):
            # Adapters that are merged or scaled: names and numbers.
            yield name, repr(value) if _is_plain(value) else len(value)


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, chain(value.keys(), value.values())))
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
