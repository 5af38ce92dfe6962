"""The types that operations multiply in, kept for work that is done later."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch


def precision_now(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """What makes the autocast of this moment again, whatever is in force then.

    Weights that it casts are not kept: a copy made without gradients must not be used with them.
    """
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext
    return partial(
        torch.autocast,
        device.type,
        dtype=torch.get_autocast_dtype(device.type),
        enabled=torch.is_autocast_enabled(device.type),
        cache_enabled=False,
    )


def product_type(x: torch.Tensor) -> torch.dtype:
    """The type that a linear layer multiplies ``x`` in at this moment."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
