"""Whether tensors are finite."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from refine_pl.errors import CheckpointError


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[tuple[str, int, int]]:
    """Name, number of NaN or infinite values, and number of values, of each tensor with some."""
    found = []
    for name, tensor in tensors:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        values = local.detach()
        if not values.is_floating_point() or values.is_meta or not values.numel():
            continue
        if values.layout is not torch.strided:  # those it does not store are 0
            values = values.coalesce().values() if values.is_sparse else values.values()
        if values.element_size() < 2:  # the small types lack the operation
            values = values.float()
        # One pass without a mask in memory; NaN and infinities show in one of the two.
        if not all(map(math.isfinite, torch.stack(torch.aminmax(values)).tolist())):
            found.append((name, int((~values.isfinite()).sum()), values.numel()))
    return found


def describe_not_finite(found: list[tuple[str, int, int]]) -> str:
    """The first tensor that :func:`not_finite` found, and how many more there are."""
    name, count, size = found[0]
    more = f"; so have {len(found) - 1} more tensors" if len(found) > 1 else ""
    return f"{name} has {count:,} values of {size:,} that are NaN or infinite{more}"


def check_finite_weights(weights: Iterable[tuple[str, Tensor]], where: str, way_out: str) -> None:
    """Refuse weights that are NaN or infinite.

    Args:
        weights: by name.
        where: the file that they are in, or the setting that they come from.
        way_out: what to do instead.

    Raises:
        CheckpointError: naming the first tensor, how many of its values, and ``where``.
    """
    found = not_finite(weights)
    if found:
        raise CheckpointError(
            f"the weights are not finite: {describe_not_finite(found)}",
            where=where,
            allowed="finite numbers",
            way_out=way_out,
        )
