"""Raw text for mid-training: a corpus and a tokenizer become batches of token sequences."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import Dataset

from refine_pl.data.cache_files import digest_of
from refine_pl.data.corpora import Corpus
from refine_pl.data.data_module import ResumableData
from refine_pl.data.loader import BatchKey, ResumableLoader, TokenSequence, collate
from refine_pl.data.token_cache import Manifest, TokenCache, tokenized
from refine_pl.errors import ConfigError, DataError
from refine_pl.randomness import stream_seed
from refine_pl.tokenizers import Tokenizer

# What decides which tokens a place in an epoch stands for.
_SETTINGS = (
    "corpus, tokenizer, sequence_length, min_tokens, crop, num_validation_documents, seed and "
    "batch_size"
)


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of documents in the cache, in the order of the corpus, and what was left out."""

    training: tuple[int, ...]
    validation: tuple[int, ...]
    short_documents: int
    duplicate_documents: int


class TextData(ResumableData):
    """Documents as sequences, one per document and epoch.

    Documents shorter than ``min_tokens`` and documents that begin alike (in their first
    ``sequence_length`` tokens) are left out; validation documents are never trained on. Batches are
    the same on any number of ranks, and a run resumes at the exact batch that it stopped at.

    Args:
        corpus: where the documents come from.
        tokenizer: text to token ids.
        sequence_length: tokens of a sequence, T; a shorter document is padded on the right.
        batch_size: sequences of a training batch, over all ranks together.
        min_tokens: shorter documents are left out; ``sequence_length`` if not set.
        crop: the ``first`` T tokens of a document, or another ``random`` T in every epoch.
        num_validation_documents: documents that are kept for validation.
        validation_batch_size: sequences of a validation batch, over all ranks; ``batch_size`` if
            not set.
        seed: of the choice of validation documents, the order and the crops.
        num_workers: processes that read ahead; documents are memory-mapped, so 0 is seldom slow.
        cache_dir: where tokens are kept; ``$REFINE_PL_CACHE`` or ``~/.cache/refine-pl`` if not set.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        sequence_length: PositiveInt,
        batch_size: PositiveInt,
        min_tokens: PositiveInt | None = None,
        crop: Literal["first", "random"] = "first",
        num_validation_documents: NonNegativeInt = 0,
        validation_batch_size: PositiveInt | None = None,
        seed: int = 0,
        num_workers: NonNegativeInt = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(batch_size, validation_batch_size, seed, num_workers)
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.min_tokens = min_tokens or sequence_length
        self.crop = crop
        self.num_validation_documents = num_validation_documents
        self.cache_dir = Path(cache_dir) if cache_dir else None

    def prepare_data(self) -> None:
        """Tokenize once per machine, before the other ranks look for the result."""
        _ = self._cache

    def setup(self, stage: str | None = None) -> None:
        """Open the tokens and choose the documents; the same for every command.

        Raises:
            DataError: the documents are too few or too short, or ranks see different ones.
            ConfigError: a batch cannot be shared evenly, or nothing is left for training.
        """
        _ = self._split

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches; documents that do not fill the last one wait for the next epoch."""
        training, manifest = self._split.training, self._cache.manifest
        rows = DocumentSet(self._cache, training, self.sequence_length, self.crop, self.seed)
        fingerprint = digest_of(
            manifest.corpus_hash,
            manifest.tokenizer,
            training,
            self.sequence_length,
            self.crop,
            self.seed,
            self.batch_size,
        )
        return self.loader(rows, collate, fingerprint, _SETTINGS)

    def val_dataloader(self) -> ResumableLoader | list[Any]:
        """The first T tokens of every validation document, in a fixed order."""
        validation = self._split.validation
        if not validation:
            return []
        return self.loader(DocumentSet(self._cache, validation, self.sequence_length), collate)

    def describe(self) -> dict[str, str | int | float]:
        """What the data are, for logs and reports. Reads them if that has not happened yet."""
        cache, split = self._cache, self._split
        used = cache.lengths[list(split.training)].clip(max=self.sequence_length)
        return {
            "corpus": self.corpus.label,
            "corpus_hash": cache.manifest.corpus_hash[:12],
            "tokenizer": self.tokenizer.label,
            "documents": len(cache),
            "tokens": cache.manifest.tokens,
            "training_documents": len(split.training),
            "training_tokens_per_epoch": int(used.sum()),
            "validation_documents": len(split.validation),
            "short_documents": split.short_documents,
            "duplicate_documents": split.duplicate_documents,
            "skipped_rows": cache.manifest.skipped_rows,
            "left_over_documents_per_epoch": len(split.training) % self.batch_size,
        }

    @cached_property
    def _cache(self) -> TokenCache:
        # Only the first rank of a machine prepares; the others open what it made.
        return tokenized(self.corpus, self.tokenizer, self.cache_dir, rank_zero_info)

    @cached_property
    def _split(self) -> Split:
        """The documents that are used, checked and announced."""
        cache = self._cache
        split = self._choose_documents()
        self.check_training(
            len(split.training),
            "training documents",
            f"{len(cache):,} documents, of which {split.short_documents:,} are shorter "
            f"than {self.min_tokens:,} tokens, {split.duplicate_documents:,} are duplicates "
            f"and {len(split.validation):,} are for validation",
            "lower batch_size, min_tokens or num_validation_documents, or use more documents",
        )
        shared = {"batch_size": self.batch_size}
        if self.num_validation_documents:
            # An uneven last batch would leave some ranks waiting for the others' forward.
            shared["validation_batch_size"] = self.validation_batch_size
            shared["num_validation_documents"] = self.num_validation_documents
        self.check_ranks(shared, cache.manifest.corpus_hash, "corpus", self.corpus.label)
        rank_zero_info("\n".join(self._summary(cache.manifest, split)))
        return split

    def _choose_documents(self) -> Split:
        """Drop short documents and duplicates, and set validation documents apart.

        Two documents are duplicates if their first ``sequence_length`` tokens are equal: the first
        one stays. So no validation sequence, which is those tokens, begins a training document as
        well. Validation documents are the first in the order of a hash of (seed, content): a
        document keeps its side when others are added, unless it is on the border.

        Raises:
            DataError: all documents are too short.
            ConfigError: no document would be left for training.
        """
        cache, least = self._cache, self.min_tokens
        lengths = cache.lengths
        long_enough = (lengths >= least).nonzero()[0].tolist()
        if not long_enough:
            longest, name = int(lengths.max()), cache.name(int(lengths.argmax()))
            raise DataError(
                f"all {len(cache):,} documents are shorter than {least:,} tokens",
                where=f"the longest one, {name}, has {longest:,} tokens",
                allowed="documents of at least min_tokens tokens, or else sequence_length",
                way_out=f"set min_tokens (and sequence_length) to {longest:,} or less, "
                "or use longer documents",
            )
        first_of: dict[bytes, int] = {}
        for index in long_enough:
            tokens = cache.document(index, 0, self.sequence_length).tobytes()
            first_of.setdefault(hashlib.blake2b(tokens, digest_size=16).digest(), index)
        wanted = self.num_validation_documents
        if wanted >= len(first_of):
            raise ConfigError(
                f"num_validation_documents {wanted:,} leaves no training document",
                where=f"{len(first_of):,} different documents of at least {least:,} tokens",
                allowed=f"at most {len(first_of) - 1:,}",
                way_out=f"num_validation_documents: {len(first_of) // 10}",
            )
        salt = str(self.seed).encode()
        shuffled = sorted(first_of, key=lambda digest: hashlib.blake2b(salt + digest).digest())
        validation = {first_of[digest] for digest in shuffled[:wanted]}
        return Split(
            training=tuple(index for index in first_of.values() if index not in validation),
            validation=tuple(sorted(validation)),
            short_documents=len(cache) - len(long_enough),
            duplicate_documents=len(long_enough) - len(first_of),
        )

    def _summary(self, manifest: Manifest, split: Split) -> list[str]:
        lines = [
            f"Data: {self.corpus.label} (hash {manifest.corpus_hash[:12]}), "
            f"{manifest.documents:,} documents, {manifest.tokens:,} tokens by "
            f"{self.tokenizer.label}",
            f"  used: {len(split.training):,} for training, {len(split.validation):,} for "
            f"validation; left out: {split.short_documents:,} shorter than {self.min_tokens:,} "
            f"tokens, {split.duplicate_documents:,} duplicates",
            self.epoch_line(len(split.training), "documents"),
        ]
        if count := manifest.skipped_rows:
            lines.append(f"  skipped rows: {count:,}; the first was {manifest.first_skipped}")
        return lines


@dataclass(eq=False)
class DocumentSet(Dataset[list[TokenSequence]]):
    """One sequence per document; reads a whole batch at a time.

    Args:
        cache: the tokens.
        documents: their indices in the cache.
        sequence_length: the most tokens of a sequence.
        crop: the ``first`` tokens, or a ``random`` piece that depends only on the seed, the epoch
            and the document.
        seed: of the random pieces.
    """

    cache: TokenCache
    documents: Sequence[int]
    sequence_length: int
    crop: Literal["first", "random"] = "first"
    seed: int = 0

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
