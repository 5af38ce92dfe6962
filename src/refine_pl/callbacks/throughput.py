"""How fast a run is, and how much memory it takes."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer

from refine_pl.training.module import RefineModule

KIB_PER_GIB = 2**20


class Throughput(Callback):
    """Logs ``time/tokens_per_s`` and ``memory/peak_gib``.

    Tokens are those of the sequences, over all processes; rollout tokens come on top. The time
    between two batches counts, loading included, validation excluded.

    Args:
        window: iterations that the speed is averaged over.
    """

    def __init__(self, window: PositiveInt = 10) -> None:
        self.window = window
        self._history: list[tuple[float, int]] = []  # seconds and tokens of the last iterations
        self._mark = self._paused_at = 0.0
        self._tokens = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        assert isinstance(pl_module, RefineModule)
        self._history = []
        self._mark, self._tokens = time.perf_counter(), pl_module.tokens_seen

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._paused_at = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on as if no time had passed."""
        self._mark += time.perf_counter() - self._paused_at

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log the speed of the last iterations and the peak so far."""
        assert isinstance(pl_module, RefineModule)
        now, tokens = time.perf_counter(), pl_module.tokens_seen
        self._history.append((now - self._mark, tokens - self._tokens))
        self._history = self._history[-self.window :]
        self._mark, self._tokens = now, tokens
        seconds, read = (sum(values) for values in zip(*self._history, strict=True))
        values = {
            "time/tokens_per_s": read / max(seconds, 1e-9),
            "memory/peak_gib": peak_memory_gib(pl_module.device),
        }
        pl_module.log_scalars(values, pl_module.log_is_due)


def peak_memory_gib(device: torch.device) -> float:
    """Largest amount of memory so far: allocated on a GPU, or resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else KIB_PER_GIB)
