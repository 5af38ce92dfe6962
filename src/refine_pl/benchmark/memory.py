"""How much memory a piece of work needs: the allocator's peak on CUDA, counted tensors on a CPU."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class PeakMemory:
    """Bytes that tensors made inside the ``with`` block held at once, at the most.

    On a CPU every operation is watched, which slows them down: measure time separately. What was
    alive before the block does not count, unless the device is CUDA, where the allocator's peak
    less its level at the start is taken.

    Args:
        device: where the work runs.

    Attributes:
        peak_bytes: the peak, once the block has ended.
        largest_elements: elements of the largest tensor that an operation returned (CPU only).
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._mode: _Watch | None = None
        self._start = 0
        self.peak_bytes = 0
        self.largest_elements = 0

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
        else:
            self._mode = _Watch()
            self._mode.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._mode is None:
            self.peak_bytes = torch.cuda.max_memory_allocated(self._device) - self._start
            return
        self._mode.__exit__(kind, value, trace)
        self.peak_bytes = self._mode.peak
        self.largest_elements = self._mode.largest


class _Watch(TorchDispatchMode):
    """Counts the storages that operations return, and forgets them when they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self._refs: dict[int, weakref.ref] = {}
        self._live = 0
        self.peak = 0
        self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # A view or an in-place result shares the storage of an argument and makes nothing new.
        given = {
            t.untyped_storage().data_ptr()
            for t in torch.utils._pytree.tree_leaves((args, kwargs))
            if isinstance(t, Tensor)
        }
        tree_map_only(Tensor, lambda t: self._add(t, given), result)
        return result

    def _add(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in given or id(storage) in self._refs:
            return
        self.largest = max(self.largest, tensor.numel())
        key, size = id(storage), storage.nbytes()

        def forget(_: object) -> None:
            self._refs.pop(key, None)
            self._live -= size

        self._refs[key] = weakref.ref(storage, forget)
        self._live += size
        self.peak = max(self.peak, self._live)
