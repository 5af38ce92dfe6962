"""Batches in a seeded order that a run can stop in and resume exactly, on any number of ranks.

The order of an epoch depends on the seed and the epoch alone. A position in it is a number of
batches over all ranks, so it means the same with other ranks or workers after a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from refine_pl.errors import CheckpointError
from refine_pl.interrupts import leave_to_parent
from refine_pl.randomness import stream_seed
from refine_pl.records import Batch


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One sequence on its way into a batch."""

    tokens: Tensor  # [T] int64
    number: int  # names the sequence within one update, over all ranks
    document: str  # for people


def collate(sequences: Sequence[TokenSequence], pad_token_id: int = 0) -> Batch:
    """Pad sequences on the right: tokens ``[B, T]`` int64 and num_tokens ``[B]`` int64.

    Args:
        sequences: at least one.
        pad_token_id: what stands after a sequence's end; nothing reads it.
    """
    tokens = [sequence.tokens for sequence in sequences]
    return Batch(
        tokens=pad_sequence(tokens, batch_first=True, padding_value=pad_token_id),
        num_tokens=torch.tensor([len(ids) for ids in tokens]),
        rows=tuple(sequence.number for sequence in sequences),
        documents=tuple(sequence.document for sequence in sequences),
    )


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What one rank reads for one batch. Workers need nothing else to make it."""

    epoch: int
    indices: tuple[int, ...]  # B, of rows of the dataset
    rows: tuple[int, ...]  # B, their numbers within one update, over all ranks


class BatchOrder(DistributedSampler[BatchKey]):
    """The batches of an epoch, for one rank.

    Rank ``r`` of ``R`` takes rows ``r, r + R, r + 2R, ...`` of every global batch. Interleaved, not
    in blocks: then the first k rows of all ranks together are the first R·k rows of the batch, so a
    mini-batch holds the same sequences on any number of ranks.

    It is a ``DistributedSampler`` because that is what makes Lightning leave a sampler alone.

    Args:
        num_rows: rows of the dataset.
        batch_size: sequences of a batch over all ranks, a multiple of ``num_ranks``.
        seed: of the order.
        rank: of this process.
        num_ranks: processes that share each batch.
        training: shuffle, leave out the incomplete last batch, and number the rows of each batch
            from 0. Otherwise keep order and every row, and number rows through the whole pass, so
            that what is drawn for a row does not depend on the batch size.
        draw: gives the ``num_rows`` rows of an epoch in their order, instead of shuffling all.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        training: bool = True,
        draw: Callable[[int], Sequence[int]] | None = None,
    ) -> None:
        rows: Any = range(num_rows)  # the base class asks for no more than a length
        super().__init__(rows, num_ranks, rank, shuffle=training, seed=seed, drop_last=training)
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.training = training
        self.draw = draw
        self.start = 0  # batches that the next iteration leaves out

    def __len__(self) -> int:
        full, rest = divmod(self.num_rows, self.batch_size)
        # The rows of an incomplete last batch may not reach to this rank.
        return full if self.training or self.rank >= rest else full + 1

    def __iter__(self) -> Iterator[BatchKey]:
        # Settled now and not when the first batch is asked for: workers read ahead.
        return self._batches(self.epoch, self.start)

    def _batches(self, epoch: int, start: int) -> Iterator[BatchKey]:
        order: Sequence[int] = range(self.num_rows)
        if self.draw is not None:
            order = self.draw(epoch)
        elif self.training:
            generator = torch.Generator().manual_seed(stream_seed(self.seed, epoch, "order"))
            order = torch.randperm(self.num_rows, generator=generator).tolist()
        for batch in range(start, len(self)):
            first = batch * self.batch_size
            stop = min(first + self.batch_size, self.num_rows)
            mine = range(first + self.rank, stop, self.num_replicas)
            origin = first if self.training else 0
            indices = tuple(order[row] for row in mine)
            yield BatchKey(epoch, indices, rows=tuple(row - origin for row in mine))


class ResumableLoader(DataLoader[Any]):
    """A loader whose state is the epoch and the number of batches that were given.

    Lightning saves it with the checkpoint and gives it back on resume. It is not torchdata's
    ``StatefulDataLoader``, because that one fixes the epoch when an iterator is *created*.
    Lightning creates it before it says which epoch is meant, and after a resume at the end of an
    epoch it uses that iterator: the run then repeats the first epoch's order. Here nothing is fixed
    before the first batch is asked for. Nor does the state depend on ``num_workers``.

    Args:
        dataset: map-style; its ``__getitem__`` takes a :class:`BatchKey` and gives B rows.
        order: the batches.
        fingerprint: of data and settings; a state with another one is refused.
        num_workers: processes that read ahead.
        collate_fn: makes a batch of what ``dataset`` gives.
        settings: those that the fingerprint stands for; the message of a refusal names them.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        order: BatchOrder,
        fingerprint: str,
        num_workers: int = 0,
        collate_fn: Callable[[Any], Any] = collate,
        settings: str = "data and settings",
    ) -> None:
        super().__init__(
            dataset,
            sampler=order,
            batch_size=None,  # the dataset itself reads batches
            num_workers=num_workers,
            collate_fn=collate_fn,
            worker_init_fn=leave_to_parent,
            # Without one of its own, every iterator would draw from the run's random numbers.
            generator=torch.Generator(),
        )
        self._order = order
        self._fingerprint = fingerprint
        self._settings = settings
        self._epoch = 0
        self._given = 0
        self._resume: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: this line runs when the first batch is asked for.
        self._epoch, self._given = self._first_position()
        self._resume = None
        self._order.set_epoch(self._epoch)
        self._order.start = self._given
        batches = super().__iter__()
        self._order.start = 0
        for batch in batches:
            self._given += 1
            yield batch
        self._epoch, self._given = self._epoch + 1, 0
        self._order.set_epoch(self._epoch)

    def _first_position(self) -> tuple[int, int]:
        epoch = self._order.epoch
        # Lightning may have moved on to a later epoch since the state was loaded.
        if self._resume is None or self._resume[0] != epoch:
            return epoch, 0
        return self._resume if self._resume[1] < len(self) else (epoch + 1, 0)

    def state_dict(self) -> dict[str, Any]:
        """``epoch``, ``batches`` given in it (over all ranks), and ``fingerprint``."""
        epoch, given = self._resume or (self._epoch, self._given)
        return {"epoch": epoch, "batches": given, "fingerprint": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches that were given.

        Raises:
            CheckpointError: the state belongs to other data or settings.
        """
        if state.get("fingerprint") != self._fingerprint:
            raise CheckpointError(
                "the data differ from those of the checkpoint, so its place in the epoch is void",
                where="state of the training data in the checkpoint",
                allowed=f"the same {self._settings}; ranks and num_workers may differ",
                way_out="restore these settings, or start a new run from the checkpoint's weights",
            )
        self._resume = (int(state["epoch"]), int(state["batches"]))
        self._order.set_epoch(self._resume[0])
