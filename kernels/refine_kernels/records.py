"""What the operations share: checks of shapes, rows by their numbers, records of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

R = TypeVar("R")


def check_shapes(**expected: tuple[Tensor | None, tuple[int, ...]]) -> None:
    """Each tensor, by the name of its argument, must have its shape; None is left out.

    Raises:
        ValueError: naming the first that has another one.
    """
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """``x [a, b, ...]`` at ``index [...]`` of its first two dimensions taken as one.

    Indexing with tensors would do the same, but its backward pass on a CPU adds one by one.
    """
    return x.flatten(0, 1).index_select(0, index.flatten()).view(*index.shape, *x.shape[2:])


def cat_rows(*tensors: Tensor) -> Tensor:
    """Joined along the first dimension."""
    return torch.cat(tensors)


def cat_tokens(*tensors: Tensor) -> Tensor:
    """Joined along the second dimension."""
    return torch.cat(tensors, 1)


def map_numbers(function: Callable[..., Tensor], record: R, *others: R) -> R:
    """The function of every floating-point tensor, however deep inside a record.

    Args:
        function: of one tensor, or of as many as there are records: those that belong together.
        record: a dataclass, a named or plain tuple, a tensor; anything else stays as it is.
        others: of the same kind; where one has None, the result has.
    """

    def of_numbers(first: Tensor, *rest: Tensor) -> Tensor:
        return function(first, *rest) if first.is_floating_point() else first

    return _map(of_numbers, (record, *others))


def map_tensors(function: Callable[[Tensor], Tensor], record: R) -> R:
    """The function of every tensor, counts and masks too; else as :func:`map_numbers`."""
    return _map(function, (record,))


def _map(function: Callable[..., Tensor], records: Sequence[Any]) -> Any:
    record = records[0]
    if any(each is None for each in records):
        return None
    if isinstance(record, Tensor):
        return function(*records)
    if isinstance(record, tuple):
        parts = [_map(function, each) for each in zip(*records, strict=True)]
        return type(record)(*parts) if hasattr(record, "_fields") else tuple(parts)
    if is_dataclass(record) and not isinstance(record, type):
        names = [f.name for f in fields(record)]
        return type(record)(*(_map(function, [getattr(r, n) for r in records]) for n in names))
    return record


def numbers(record: object) -> tuple[Tensor, ...]:
    """Every floating-point tensor of a record, however deep inside."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_numbers(keep, record)
    return tuple(found)
