"""Seconds spent in the named parts of an update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from refine_kernels.clock import now


class Stopwatch:
    """Adds up the seconds of named parts.

    Args:
        device: on CUDA the device is waited for at each border, so that a part is charged for its
            own work. That costs a little overlap, so it can be turned off.
        enabled: if False, nothing is measured and nothing is waited for.
    """

    def __init__(self, device: torch.device | str = "cpu", enabled: bool = True) -> None:
        self._device = torch.device(device)
        self._enabled = enabled
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Charge the time inside the ``with`` block to ``part``."""
        if not self._enabled:
            yield
            return
        start = now(self._device)
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + now(self._device) - start
