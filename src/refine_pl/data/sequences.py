"""Sequences: the pieces of documents that batches are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from refine_pl.data.loader import BatchKey, TokenSequence
from refine_pl.randomness import stream_seed

Numbers = npt.NDArray[np.int64]


class Documents(Protocol):
    """Tokenized documents, by their index."""

    lengths: Numbers

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The name of a document."""

    def document(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Tokens ``start`` to ``stop - 1`` of a document."""


@dataclass(frozen=True, eq=False)
class Pieces:
    """Where sequences begin: ``documents [N]`` are indices, ``starts [N]`` tokens."""

    documents: Numbers
    starts: Numbers

    def __len__(self) -> int:
        return len(self.documents)


def beginnings(documents: Numbers) -> Pieces:
    """One sequence per document, from its first token on."""
    return Pieces(documents, np.zeros_like(documents))


def whole_documents(documents: Numbers, lengths: Numbers, size: int, least: int) -> Pieces:
    """Every piece of ``size`` tokens, one after the other, without overlap.

    Args:
        documents: ``[D]`` indices.
        lengths: ``[D]`` their tokens.
        size: tokens of a piece; the last one of a document may be shorter.
        least: tokens that a last piece must have to be kept; a document's only one always is.
    """
    full, rest = np.divmod(lengths, size)
    counts = full + ((rest >= least) | (full == 0))
    # 0, 1, ... for each document: places among all pieces, less that of the document's first.
    first = np.repeat(counts.cumsum() - counts, counts)
    return Pieces(np.repeat(documents, counts), (np.arange(counts.sum()) - first) * size)


def spread(documents: Numbers, lengths: Numbers, size: int, number: int) -> Pieces:
    """``number`` pieces of each document, from its beginning to its end at equal distances.

    Those of a document with fewer than ``number * size`` tokens overlap. One piece alone is the
    beginning.
    """
    spare = np.maximum(lengths - size, 0)[:, None]
    starts = spare * np.arange(number) // max(number - 1, 1)
    return Pieces(np.repeat(documents, number), starts.reshape(-1))


@dataclass(eq=False)
class SequenceSet(Dataset[list[TokenSequence]]):
    """One sequence per piece; reads a whole batch at a time.

    Args:
        source: the tokens.
        pieces: where sequences begin.
        sequence_length: the most tokens of a sequence.
        random_seed: if given, a sequence begins at a random token instead, which depends on this
            seed, the epoch and the document alone.
    """

    source: Documents
    pieces: Pieces
    sequence_length: int
    random_seed: int | None = None

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def lengths(self) -> Numbers:
        """Tokens of every sequence."""
        left = self.source.lengths[self.pieces.documents] - self.pieces.starts
        return left.clip(max=self.sequence_length)

    def __getitem__(self, key: BatchKey) -> list[TokenSequence]:
        return [
            self.sequence(index, number, key.epoch)
            for index, number in zip(key.indices, key.rows, strict=True)
        ]

    def sequence(self, index: int, number: int, epoch: int) -> TokenSequence:
        """What is read of piece ``index`` in an epoch, under ``number``."""
        document, start = int(self.pieces.documents[index]), int(self.pieces.starts[index])
        spare = int(self.source.lengths[document]) - self.sequence_length
        if self.random_seed is not None and spare > 0:
            start = stream_seed(self.random_seed, epoch, document, "crop") % (spare + 1)
        tokens = self.source.document(document, start, start + self.sequence_length)
        return TokenSequence(
            tokens=torch.from_numpy(tokens.astype(np.int64)),
            number=number,
            document=self.source.name(document),
        )
