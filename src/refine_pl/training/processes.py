"""The processes of a Lightning run, as the engine needs them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from refine_pl.training.sizes import Processes


def processes_of(trainer: Trainer) -> Processes:
    """All processes of a run, which share every batch."""
    strategy = trainer.strategy

    def total(values: Tensor) -> Tensor:
        return torch.as_tensor(strategy.reduce(values, reduce_op="sum"))

    def synchronised(last: bool) -> AbstractContextManager[Any]:
        if last or not isinstance(strategy, ParallelStrategy):
            return nullcontext()
        return strategy.block_backward_sync()

    return Processes(trainer.world_size, total, synchronised)
