"""The global random generators, kept in checkpoints.

The algorithm draws from streams of its own (``randomness.py``) and needs none of this. It is for
parts that users write, which may draw from the global generators.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from refine_pl.randomness import stream_seed

States = dict[str, Any]

_before_block: ContextVar[States | None] = ContextVar("_before_block", default=None)


def generator_states() -> States:
    """The states of all global generators, as tensors and plain values."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": [version, list(numbers), gauss],
        "numpy": [
            str(kind),
            [int(key) for key in keys],
            int(position),
            int(has_gauss),
            float(cached),
        ],
    }


def set_generator_states(states: States) -> None:
    """The inverse of :func:`generator_states`."""
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever the block draws, the generators go on afterwards as if it had not run.

    A checkpoint that is saved inside the block holds the states of before it, so that a run resumed
    from there goes on like the one that saved it.
    """
    states = generator_states()
    token = _before_block.set(states)
    try:
        yield
    finally:
        _before_block.reset(token)
        set_generator_states(states)


def _seed_apart(rank: int) -> None:
    """Give this process streams that no other process has, following from its present ones."""
    seed = stream_seed(int(torch.randint(2**62, ())), rank, "process")
    torch.manual_seed(seed)  # of every device
    random.seed(seed)
    np.random.seed(seed % 2**32)


class RandomState(Callback):
    """Saves the states of the global generators of every process, and restores them on resume.

    A run seeds all processes alike. When training starts, every process but the first gets streams
    of its own; so do those of a resume that has more processes than the run before.
    """

    def __init__(self) -> None:
        self._loaded: list[States] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states of all processes, in the order of their ranks."""
        own = _before_block.get() or generator_states()
        states: list[Any] = [own]
        if dist.is_available() and dist.is_initialized():
            states = [None] * dist.get_world_size()
            dist.all_gather_object(states, own)
        return {"states": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states; what happens until training starts may still draw."""
        self._loaded = state_dict["states"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore this process's states, or make them differ from those of all others."""
        rank, known = trainer.global_rank, 1
        if self._loaded is not None:
            known = len(self._loaded)
            set_generator_states(self._loaded[rank % known])
            self._loaded = None
        if rank >= known:
            _seed_apart(rank)
