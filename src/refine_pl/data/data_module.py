"""What the data modules share: loaders for this rank, and what ranks cannot share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningDataModule

from refine_pl.data.loader import BatchOrder, ResumableLoader
from refine_pl.data.mixture import MixedOrder
from refine_pl.errors import ConfigError, DataError


class ResumableData(LightningDataModule):
    """Batches in a seeded order, the same on any number of ranks.

    Args:
        batch_size: sequences of a training batch, over all ranks together.
        validation_batch_size: of a validation batch, over all ranks; ``batch_size`` if ``None``.
        seed: of the order.
        num_workers: processes that read ahead.
    """

    def __init__(
        self, batch_size: int, validation_batch_size: int | None, seed: int, num_workers: int
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.validation_batch_size = validation_batch_size or batch_size
        self.seed = seed
        self.num_workers = num_workers

    @property
    def ranks(self) -> tuple[int, int]:
        """The rank of this process, and the number of processes with sequences of their own."""
        # Ranks that share a sequence (tensor parallel) count as one: only the strategy knows.
        if self.trainer is not None:
            kwargs = self.trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
            return kwargs["rank"], kwargs["num_replicas"]
        return 0, 1

    def loader(
        self,
        rows: Any,
        collate_fn: Callable[[Any], Any],
        fingerprint: str | None = None,
        settings: str = "",
        draw: MixedOrder | None = None,
    ) -> ResumableLoader:
        """Shuffled batches of training; without a ``fingerprint`` every row in order.

        The arguments are those of :class:`ResumableLoader` and :class:`BatchOrder`.
        """
        rank, num_ranks = self.ranks
        training = fingerprint is not None
        size = self.batch_size if training else self.validation_batch_size
        number = len(rows) if draw is None else len(draw)
        place: Any = {"rank": rank, "num_ranks": num_ranks}
        order = BatchOrder(number, size, self.seed, **place, training=training, draw=draw)
        return ResumableLoader(
            rows, order, fingerprint or "", self.num_workers, collate_fn, settings
        )

    def epoch_line(self, num_rows: int, what: str) -> str:
        """What an epoch is, in words."""
        batches, rest = divmod(num_rows, self.batch_size)
        return (
            f"  an epoch: {batches:,} batches of {self.batch_size:,}; {rest:,} {what} do not fill "
            "another one"
        )

    def check_training(self, num_rows: int, what: str, where: str, way_out: str) -> None:
        """Refuse too few rows, and the trainer's option that would replace their order.

        Raises:
            ConfigError: naming the setting.
        """
        if overfit_batches := getattr(self.trainer, "overfit_batches", 0):
            raise ConfigError(
                "overfit_batches cannot be used with this data: it would replace the order",
                where=f"trainer.overfit_batches: {overfit_batches}",
                way_out="use as few documents or rows as batch_size: every epoch is one batch",
            )
        if num_rows < self.batch_size:
            raise ConfigError(
                f"batch_size {self.batch_size:,} is more than the {num_rows:,} {what}",
                where=where,
                allowed=f"at most {num_rows:,}",
                way_out=way_out,
            )

    def check_ranks(
        self, shared: Mapping[str, int], content_hash: str, what: str, label: str
    ) -> None:
        """Refuse numbers that the ranks cannot share evenly, and data that differ between them.

        Args:
            shared: settings of the data by name, each counted over all ranks.
            content_hash: of the data of this rank.
            what: the kind of data, for the message.
            label: which data, for the message.

        Raises:
            ConfigError: naming the first number that is not a multiple of the number of ranks.
            DataError: rank 0 has other data.
        """
        _, num_ranks = self.ranks
        for name, value in shared.items():
            if value % num_ranks:
                raise ConfigError(
                    f"{name} {value:,} cannot be divided by {num_ranks} ranks",
                    where=f"data.{name}",
                    allowed=f"a multiple of {num_ranks}: it counts over all ranks",
                    way_out=f"{name}: {-(-value // num_ranks) * num_ranks}",
                )
        if self.trainer is None:
            return
        first = self.trainer.strategy.broadcast(content_hash)
        if first != content_hash:
            raise DataError(
                f"rank {self.trainer.global_rank} reads another {what} than rank 0",
                where=f"{label}: hash {content_hash[:12]}, not {first[:12]}",
                way_out="give all machines the same files and tokenizer (and the same version of "
                "Python, for its standard library)",
            )
