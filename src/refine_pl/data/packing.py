"""Packing: short sequences that are read together, without a token of one reaching another.

A pack is a batch of its own, of sequences of similar length, each in a row of its own. So a
recurrence starts anew at every border, a convolution, an attention and a chunk of LaCT never look
over one, and no position, rollout or target lies across one, in any backbone: rows do not see each
other. What packing saves is the padding, and what is left of it is known beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from refine_pl.data.loader import BatchKey, TokenSequence, collate
from refine_pl.data.sequences import Numbers, SequenceSet
from refine_pl.errors import ConfigError
from refine_pl.randomness import stream_seed
from refine_pl.records import Packs


def packs_of(lengths: Numbers, tokens: int, seed: int = 0) -> list[Numbers]:
    """Which sequences are packed together: indices, the longest first.

    A pack takes the longest sequence that is left and as many of the next ones as fit when all are
    padded to its length. The seed decides the order of those of one length.

    Args:
        lengths: ``[N]`` tokens of the sequences, each at most ``tokens``.
        tokens: of a pack, padding among them.
        seed: of ties.
    """
    order = np.random.Generator(np.random.PCG64(stream_seed(seed, "packs"))).permutation(
        len(lengths)
    )
    order = order[np.argsort(-lengths[order], kind="stable")]
    packs = []
    start = 0
    while start < len(order):
        stop = start + tokens // int(lengths[order[start]])
        packs.append(order[start:stop])
        start = stop
    return packs


class PackSet(Dataset[list[list[TokenSequence]]]):
    """One pack per row. Packs are the same in every epoch; their order is not.

    Args:
        sequences: those of an epoch; their lengths do not depend on it.
        tokens: of a pack, padding among them.
        batch_size: packs of a batch, over all ranks.
        seed: of what is packed together.
        groups: ``[N]``, where only sequences of one number may share a pack.

    Raises:
        ConfigError: a sequence does not fit a pack.
    """

    def __init__(
        self,
        sequences: SequenceSet,
        tokens: int,
        batch_size: int,
        seed: int,
        groups: Numbers | None = None,
    ) -> None:
        if tokens < sequences.sequence_length:
            raise ConfigError(
                f"packing is {tokens:,}, and a sequence has up to {sequences.sequence_length:,} "
                "tokens",
                where="data.packing",
                allowed="sequence_length or more: tokens that are read in one pass",
                way_out=f"packing: {sequences.sequence_length}",
            )
        self.sequences = sequences
        self.batch_size = batch_size
        lengths = sequences.lengths
        groups = np.zeros_like(lengths) if groups is None else groups
        each = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        self.packs = [own[p] for own in each for p in packs_of(lengths[own], tokens, seed)]
        self._real = int(lengths.sum())
        self._read = sum(len(pack) * int(lengths[pack[0]]) for pack in self.packs)
        self._padded_rows = len(lengths) * sequences.sequence_length

    def __len__(self) -> int:
        return len(self.packs)

    @property
    def padding_share(self) -> float:
        """Of the tokens that are read, padding among them."""
        return 1 - self._real / self._read

    def summary(self) -> str:
        """What packing saves, for people."""
        return (
            f"{len(self):,} packs of {len(self.sequences):,} sequences, padding "
            f"{self.padding_share:.1%} of what is read ({1 - self._real / self._padded_rows:.1%} "
            "if each were padded to sequence_length)"
        )

    def __getitem__(self, key: BatchKey) -> list[list[TokenSequence]]:
        return [
            [
                # Numbers of their own within a batch, on any number of ranks.
                self.sequences.sequence(int(index), number + self.batch_size * place, key.epoch)
                for place, index in enumerate(self.packs[pack])
            ]
            for pack, number in zip(key.indices, key.rows, strict=True)
        ]


def collate_packs(packs: Sequence[Sequence[TokenSequence]]) -> Packs:
    """Each pack padded on the right to its longest sequence."""
    return Packs(tuple(collate(pack) for pack in packs))
