"""Which documents are used, and which of them are kept for validation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from refine_pl.data.token_cache import TokenCache
from refine_pl.errors import ConfigError, DataError


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
    stays. So no validation row, which is those tokens, begins a training document as well.
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
            where=f"the longest one, {cache.names[int(lengths.argmax())]}, has {longest:,} tokens",
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
