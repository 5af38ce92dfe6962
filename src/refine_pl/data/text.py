"""Raw text for mid-training: a corpus and a tokenizer become batches of token sequences."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

from refine_pl.data.collate import collate
from refine_pl.data.corpora.base import Corpus
from refine_pl.data.loader import BatchOrder, ResumableLoader
from refine_pl.data.ranks import (
    check_same,
    check_shares,
    rank_and_number,
    refuse_overfit_batches,
)
from refine_pl.data.split import Split, split_documents
from refine_pl.data.text_rows import TextRows
from refine_pl.data.token_cache import TokenCache, tokenized
from refine_pl.errors import ConfigError
from refine_pl.records import Batch
from refine_pl.tokenizers import Tokenizer


class TextData(LightningDataModule):
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
        super().__init__()
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.min_tokens = min_tokens or sequence_length
        self.crop = crop
        self.num_validation_documents = num_validation_documents
        self.validation_batch_size = validation_batch_size or batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.cache_dir = Path(cache_dir) if cache_dir else None
        self._cache: TokenCache | None = None
        self._ready: tuple[TokenCache, Split] | None = None

    def prepare_data(self) -> None:
        """Tokenize once per machine, before the other ranks look for the result."""
        self._cache = tokenized(self.corpus, self.tokenizer, self.cache_dir, rank_zero_info)

    def setup(self, stage: str | None = None) -> None:
        """Open the tokens and choose the documents; the same for every stage.

        Raises:
            DataError: the documents are too few or too short, or ranks see different ones.
            ConfigError: a batch cannot be shared evenly, or nothing is left for training.
        """
        if self._ready is not None:
            return
        refuse_overfit_batches(self.trainer)
        # Other ranks than the first of a machine did not prepare; they find what it left.
        cache = self._cache or tokenized(
            self.corpus, self.tokenizer, self.cache_dir, rank_zero_info
        )
        split = split_documents(
            cache,
            sequence_length=self.sequence_length,
            min_tokens=self.min_tokens,
            num_validation_documents=self.num_validation_documents,
            seed=self.seed,
        )
        if len(split.training) < self.batch_size:
            raise ConfigError(
                f"batch_size {self.batch_size:,} is more than the {len(split.training):,} "
                "training documents",
                where=f"{len(cache):,} documents, of which {split.short_documents:,} are shorter "
                f"than {self.min_tokens:,} tokens, {split.duplicate_documents:,} are duplicates "
                f"and {len(split.validation):,} are for validation",
                allowed=f"at most {len(split.training):,}",
                way_out="lower batch_size, min_tokens or num_validation_documents, "
                "or use more documents",
            )
        self._check_ranks(cache)
        self._ready = cache, split
        rank_zero_info(self._summary())

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches; documents that do not fill the last one wait for the next epoch."""
        cache, split = self._data
        rank, num_ranks = rank_and_number(self.trainer)
        rows = TextRows(cache, split.training, self.sequence_length, self.crop, self.seed)
        order = BatchOrder(
            len(rows), self.batch_size, self.seed, rank=rank, num_ranks=num_ranks, training=True
        )
        return ResumableLoader(rows, order, self._fingerprint(), self.num_workers)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """The first T tokens of every validation document, in a fixed order."""
        cache, split = self._data
        if not split.validation:
            return []
        rank, num_ranks = rank_and_number(self.trainer)
        rows = TextRows(cache, split.validation, self.sequence_length)
        size = self.validation_batch_size
        order = BatchOrder(
            len(rows), size, self.seed, rank=rank, num_ranks=num_ranks, training=False
        )
        return DataLoader(
            rows,  # type: ignore[arg-type]
            sampler=order,
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=collate,
            generator=torch.Generator(),
        )

    def describe(self) -> dict[str, str | int | float]:
        """What the data are, for logs and reports. Reads them if that has not happened yet."""
        cache, split = self._data
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

    @property
    def _data(self) -> tuple[TokenCache, Split]:
        self.setup()
        assert self._ready is not None
        return self._ready

    def _check_ranks(self, cache: TokenCache) -> None:
        shared = {"batch_size": self.batch_size}
        if self.num_validation_documents:
            shared["validation_batch_size"] = self.validation_batch_size
            # An uneven last batch would leave some ranks waiting for the others' forward.
            shared["num_validation_documents"] = self.num_validation_documents
        check_shares(self.trainer, shared)
        check_same(
            self.trainer,
            cache.manifest.corpus_hash,
            "corpus",
            self.corpus.label,
            "give all machines the same files (and the same version of Python, for its standard "
            "library)",
        )

    def _fingerprint(self) -> str:
        """Of everything that decides which tokens a place in an epoch stands for."""
        cache, split = self._data
        settings = (
            cache.manifest.corpus_hash,
            cache.manifest.tokenizer,
            split.training,
            self.sequence_length,
            self.crop,
            self.seed,
            self.batch_size,
        )
        return hashlib.blake2b(repr(settings).encode(), digest_size=16).hexdigest()

    def _summary(self) -> str:
        assert self._ready is not None
        cache, split = self._ready
        lines = [
            f"Data: {self.corpus.label} (hash {cache.manifest.corpus_hash[:12]}), "
            f"{len(cache):,} documents, {cache.manifest.tokens:,} tokens by {self.tokenizer.label}",
            f"  used: {len(split.training):,} for training, {len(split.validation):,} for "
            f"validation; left out: {split.short_documents:,} shorter than {self.min_tokens:,} "
            f"tokens, {split.duplicate_documents:,} duplicates",
            f"  an epoch: {len(split.training) // self.batch_size:,} batches of "
            f"{self.batch_size:,}; {len(split.training) % self.batch_size:,} documents do not fill "
            "another one",
        ]
        if cache.manifest.skipped_rows:
            lines.append(
                f"  skipped rows: {cache.manifest.skipped_rows:,}; the first was "
                f"{cache.manifest.first_skipped}"
            )
        return "\n".join(lines)
