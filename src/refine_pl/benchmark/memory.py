"""How much memory a piece of work needs: the allocator's peak on CUDA, counted tensors on a CPU."""

from __future__ import annotations

import weakref
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Bytes that tensors made inside the ``with`` block held at once, at the most.

    On a CPU every operation is watched (a storage that it returns counts until it is freed), which
    slows them down: measure time separately. What was alive before the block does not count, unless
    the device is CUDA, where the allocator's peak less its level at the start is taken.

    Args:
        device: where the work runs.

    Attributes:
        peak_bytes: the peak, once the block has ended.
        largest_elements: elements of the largest tensor that an operation returned (CPU only).
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self._device = torch.device(device)
        self._storages: dict[int, weakref.ref] = {}
        self._live = 0  # bytes; on CUDA those at the start
        self.peak_bytes = 0
        self.largest_elements = 0

    def __enter__(self) -> Self:
        if self._device.type != "cuda":
            return super().__enter__()
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        self._live = torch.cuda.memory_allocated(self._device)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._device.type != "cuda":
            super().__exit__(*error)
        else:
            self.peak_bytes = torch.cuda.max_memory_allocated(self._device) - self._live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # A view or an in-place result shares the storage of an argument and makes nothing new.
        given = {storage.data_ptr() for _, storage in _storages((args, kwargs))}
        for tensor, storage in _storages(result):
            if storage.data_ptr() not in given and id(storage) not in self._storages:
                self.largest_elements = max(self.largest_elements, tensor.numel())
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def forget(_: object) -> None:
            self._storages.pop(key, None)
            self._live -= size

        self._storages[key] = weakref.ref(storage, forget)
        self._live += size
        self.peak_bytes = max(self.peak_bytes, self._live)


def _storages(tree: Any) -> list[tuple[Tensor, torch.UntypedStorage]]:
    return [(x, x.untyped_storage()) for x in tree_leaves(tree) if isinstance(x, Tensor)]
