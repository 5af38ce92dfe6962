"""Small integer tensors on the host: read once, because a read waits for all of the GPU's work.

Which rows share a state, and how far a chunk is full, decides what runs next. Those numbers are
kept on the CPU; the tensors that they come from are the same in all layers of a model.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_read = WeakIdKeyDictionary()


def on_host(x: Tensor) -> Tensor:
    """``x`` on the CPU, read at the first call: it must not be changed in place afterwards."""
    if x.device.type == "cpu":
        return x
    found = _read.get(x)
    if found is None:
        found = _read[x] = x.cpu()
    return found


def known_on_host(x: Tensor, copy: Tensor) -> Tensor:
    """``x``, whose ``copy`` on the CPU is there already: :func:`on_host` gives it unread."""
    if x.device.type != "cpu":
        _read[x] = copy
    return x


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """The small CPU tensor ``x`` on the device, without waiting for it."""
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def rows_at(x: Tensor, index: Tensor) -> Tensor:
    """``x [M, ...]`` at ``index`` on the host, which may be on another device than ``x``."""
    return x.index_select(0, to_device(index, x.device))
