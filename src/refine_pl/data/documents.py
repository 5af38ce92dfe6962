"""Documents of a token cache: which are used, which are kept for validation, and as sequences."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from refine_pl.data.loader import BatchKey, TokenSequence
from refine_pl.data.token_cache import TokenCache
from refine_pl.errors import ConfigError, DataError
from refine_pl.randomness import stream_seed


@dataclass(frozen=True, slots=True)
class Split:
    """Document indices of the cache, in the order of the corpus, and what was left out."""

    training: tuple[int, ...]
    validation: tuple[int, ...]
    short_documents: int
    duplicate_documents: int


def split_documents(
    cache: TokenCache,
    *,
    sequence_length: int,
    min_tokens: int,
    num_validation_documents: int,
    seed: int,
) -> Split:
    """Drop short documents and duplicates, and set validation documents apart.

    Two documents are duplicates if their first ``sequence_length`` tokens are equal: the first one
    stays. So no validation sequence, which is those tokens, begins a training document as well.
    Validation documents are the first in the order of a hash of (seed, content): a document keeps
    its side when others are added, unless it is on the border.

    Raises:
        DataError: all documents are too short.
        ConfigError: no document would be left for training.
    """
    lengths = cache.lengths
    long_enough = [int(index) for index in (lengths >= min_tokens).nonzero()[0]]
    if not long_enough:
        longest = int(lengths.max())
        raise DataError(
            f"all {len(cache):,} documents are shorter than {min_tokens:,} tokens",
            where=f"the longest one, {cache.name(int(lengths.argmax()))}, has {longest:,} tokens",
            allowed="documents of at least min_tokens tokens (sequence_length if it is not set)",
            way_out=f"set min_tokens (and sequence_length) to {longest:,} or less, "
            "or use longer documents",
        )
    first_of: dict[bytes, int] = {}
    for index in long_enough:
        tokens = cache.document(index, 0, sequence_length).tobytes()
        first_of.setdefault(hashlib.blake2b(tokens, digest_size=16).digest(), index)
    if num_validation_documents >= len(first_of):
        raise ConfigError(
            f"num_validation_documents {num_validation_documents:,} leaves no training document",
            where=f"{len(first_of):,} different documents of at least {min_tokens:,} tokens",
            allowed=f"at most {len(first_of) - 1:,}",
            way_out=f"num_validation_documents: {len(first_of) // 10}",
        )
    salt = str(seed).encode()
    shuffled = sorted(first_of, key=lambda digest: hashlib.blake2b(salt + digest).digest())
    validation = {first_of[digest] for digest in shuffled[:num_validation_documents]}
    return Split(
        training=tuple(index for index in first_of.values() if index not in validation),
        validation=tuple(sorted(validation)),
        short_documents=len(cache) - len(long_enough),
        duplicate_documents=len(long_enough) - len(first_of),
    )


class DocumentSet(Dataset[list[TokenSequence]]):
    """One sequence per document; reads a whole batch at a time.

    Args:
        cache: the tokens.
        documents: indices of the documents in the cache.
        sequence_length: the most tokens that a sequence has.
        crop: ``first`` tokens of the document, or a ``random`` piece that depends only on the seed,
            the epoch and the document.
        seed: of the random pieces.
    """

    def __init__(
        self,
        cache: TokenCache,
        documents: Sequence[int],
        sequence_length: int,
        crop: Literal["first", "random"] = "first",
        seed: int = 0,
    ) -> None:
        self.cache = cache
        self.documents = documents
        self.sequence_length = sequence_length
        self.crop = crop
        self.seed = seed

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, key: BatchKey) -> list[TokenSequence]:
        return [
            self.sequence(self.documents[index], number, key.epoch)
            for index, number in zip(key.indices, key.rows, strict=True)
        ]

    def sequence(self, document: int, number: int, epoch: int) -> TokenSequence:
        """The piece of a document that is read in an epoch, under ``number``."""
        start = 0
        spare = int(self.cache.lengths[document]) - self.sequence_length
        if self.crop == "random" and spare > 0:
            start = stream_seed(self.seed, epoch, document, "crop") % (spare + 1)
        tokens = self.cache.document(document, start, start + self.sequence_length)
        return TokenSequence(
            tokens=torch.from_numpy(tokens.astype(np.int64)),
            number=number,
            document=self.cache.name(document),
        )
