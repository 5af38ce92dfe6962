"""Which documents are trained on, and which are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from refine_pl.data.sequences import Documents, Numbers
from refine_pl.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of documents, in the order of their corpus, and how many were left out."""

    training: Numbers
    validation: Numbers
    short_documents: int
    duplicate_documents: int


@dataclass(frozen=True, slots=True)
class Chooser:
    """What decides which documents are used.

    Two documents *begin alike* if their first ``sequence_length`` tokens are equal. Held-out
    documents are the first in the order of a hash of (seed, beginning), so a document keeps its
    side when others are added, unless it is on the border.

    Args:
        sequence_length: T.
        min_tokens: shorter documents are left out.
        split_seed: of the choice of held-out documents.
        keep_all: whether training uses every document that is not a copy of another, instead of one
            of those that begin alike. Documents that begin like a held-out one are left out anyway.
    """

    sequence_length: int
    min_tokens: int
    split_seed: int
    keep_all: bool = False

    def divide(self, source: Documents, held_out: int, foreign: Collection[bytes] = ()) -> Split:
        """Divide the documents of one corpus.

        Args:
            source: the documents.
            held_out: how many are set apart.
            foreign: beginnings of documents that are held out elsewhere.

        Raises:
            DataError: all documents are too short.
            ConfigError: no document would be left for training.
        """
        alike = self.beginnings(source)
        usable = sum(map(len, alike.values()))
        own = {digest: group for digest, group in alike.items() if digest not in foreign}
        if held_out >= len(own):
            raise ConfigError(
                f"num_validation_documents {held_out:,} leaves no training document"
                if held_out
                else "every document is held out for validation",
                where=f"{len(own):,} different documents of at least {self.min_tokens:,} tokens",
                allowed=f"at most {len(own) - 1:,}" if held_out else "documents for training",
                way_out=f"num_validation_documents: {len(own) // 10}"
                if held_out
                else "a val_corpus of other documents",
            )
        chosen = self._first(own, held_out)
        left = [group for digest, group in own.items() if digest not in chosen]
        training = sorted(i for group in left for i in self._of_group(source, group))
        validation = sorted(own[digest][0] for digest in chosen)
        return Split(
            training=np.array(training, dtype=np.int64),
            validation=np.array(validation, dtype=np.int64),
            short_documents=len(source) - usable,
            duplicate_documents=usable - len(training) - len(validation),
        )

    def all_held_out(self, source: Documents, number: int) -> tuple[Numbers, frozenset[bytes]]:
        """Documents of a corpus that is for validation alone, and their beginnings.

        Args:
            source: the documents.
            number: how many; all if 0.

        Raises:
            DataError: all documents are too short.
            ConfigError: there are fewer than ``number``.
        """
        alike = self.beginnings(source)
        if number > len(alike):
            raise ConfigError(
                f"num_validation_documents {number:,} is more than val_corpus has",
                where=f"{len(alike):,} different documents of at least {self.min_tokens:,} tokens",
                allowed=f"at most {len(alike):,}, or 0 for all of them",
                way_out=f"num_validation_documents: {len(alike)}",
            )
        chosen = self._first(alike, number or len(alike))
        return np.array(sorted(alike[digest][0] for digest in chosen)), frozenset(alike)

    def beginnings(self, source: Documents) -> dict[bytes, list[int]]:
        """The documents that are long enough, in groups of those that begin alike.

        Raises:
            DataError: there is none.
        """
        long_enough = (source.lengths >= self.min_tokens).nonzero()[0].tolist()
        if not long_enough:
            longest = int(source.lengths.max())
            name = source.name(int(source.lengths.argmax()))
            raise DataError(
                f"all {len(source):,} documents are shorter than {self.min_tokens:,} tokens",
                where=f"the longest one, {name}, has {longest:,} tokens",
                allowed="documents of at least min_tokens tokens, or else sequence_length",
                way_out=f"set min_tokens (and sequence_length) to {longest:,} or less, "
                "or use longer documents",
            )
        groups: dict[bytes, list[int]] = {}
        for index in long_enough:
            groups.setdefault(_digest(source, index, self.sequence_length), []).append(index)
        return groups

    def _first(self, groups: Collection[bytes], number: int) -> set[bytes]:
        salt = str(self.split_seed).encode()
        return set(sorted(groups, key=lambda each: hashlib.blake2b(salt + each).digest())[:number])

    def _of_group(self, source: Documents, group: list[int]) -> list[int]:
        """Those of documents that begin alike that are trained on."""
        if not self.keep_all or len(group) == 1:
            return group[:1]
        return list({_digest(source, i, None): i for i in reversed(group)}.values())


def _digest(source: Documents, index: int, tokens: int | None) -> bytes:
    content = source.document(index, 0, tokens)
    # Caches of different corpora hold the same ids in the same type: the tokenizer decides it.
    return hashlib.blake2b(content.tobytes(), digest_size=16).digest()
