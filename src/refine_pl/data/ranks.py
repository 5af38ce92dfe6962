"""What the data modules ask of the trainer: which rank this is, and what ranks cannot share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from refine_pl.errors import ConfigError, DataError


def rank_and_number(trainer: Any) -> tuple[int, int]:
    """``(rank, num_ranks)`` among the processes that hold different sequences."""
    # Ranks that share a sequence (tensor parallel) count as one: only the strategy knows.
    if trainer is not None:
        kwargs = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        return kwargs["rank"], kwargs["num_replicas"]
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def refuse_overfit_batches(trainer: Any) -> None:
    """Refuse the trainer's option that would replace the order of the data.

    Raises:
        ConfigError: if it is set.
    """
    if overfit_batches := getattr(trainer, "overfit_batches", 0):
        raise ConfigError(
            "overfit_batches cannot be used with this data: it would replace the order",
            where=f"trainer.overfit_batches: {overfit_batches}",
            way_out="use as few documents or rows as batch_size: every epoch is one batch",
        )


def check_shares(trainer: Any, shared: Mapping[str, int]) -> None:
    """Refuse numbers that the ranks cannot share evenly.

    Args:
        trainer: the trainer, or None.
        shared: settings of the data by name, each counted over all ranks.

    Raises:
        ConfigError: naming the first that is no multiple of the number of ranks.
    """
    _, num_ranks = rank_and_number(trainer)
    for name, value in shared.items():
        if value % num_ranks:
            raise ConfigError(
                f"{name} {value:,} cannot be divided by {num_ranks} ranks",
                where=f"data.{name}",
                allowed=f"a multiple of {num_ranks}: it counts over all ranks",
                way_out=f"{name}: {-(-value // num_ranks) * num_ranks}",
            )


def check_same(trainer: Any, content_hash: str, what: str, label: str, way_out: str) -> None:
    """Refuse data that differ between ranks.

    Args:
        trainer: the trainer, or None.
        content_hash: of the data of this rank.
        what: the kind of data, for the message.
        label: which data.
        way_out: what to change.

    Raises:
        DataError: if rank 0 has others.
    """
    if trainer is None:
        return
    first = trainer.strategy.broadcast(content_hash)
    if first != content_hash:
        raise DataError(
            f"rank {trainer.global_rank} reads another {what} than rank 0",
            where=f"{label}: hash {content_hash[:12]}, not {first[:12]}",
            way_out=way_out,
        )
