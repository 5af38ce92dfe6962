"""What the operations share: checks of shapes, rows by their numbers, records of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

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


def map_numbers(record: R, function: Callable[[Tensor], Tensor]) -> R:
    """The same record with the function of every floating-point tensor, however deep inside.

    Args:
        record: a dataclass, a named or plain tuple, a tensor; anything else stays as it is.
        function: of one tensor.
    """
    return _map(record, function)


def _map(record: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(record, Tensor):
        return function(record) if record.is_floating_point() else record
    if isinstance(record, tuple):
        parts = [_map(part, function) for part in record]
        return type(record)(*parts) if hasattr(record, "_fields") else tuple(parts)
    if is_dataclass(record) and not isinstance(record, type):
        values = {f.name: _map(getattr(record, f.name), function) for f in fields(record)}
        return type(record)(**values)
    return record


def numbers(record: object) -> tuple[Tensor, ...]:
    """Every floating-point tensor of a record, however deep inside."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_numbers(record, keep)
    return tuple(found)
