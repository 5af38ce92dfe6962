"""Raw text for mid-training: a corpus and a tokenizer become batches of token sequences."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from refine_pl.data.cache_files import digest_of
from refine_pl.data.corpora import Corpus
from refine_pl.data.data_module import ResumableData
from refine_pl.data.loader import ResumableLoader, collate
from refine_pl.data.mixture import MixedOrder, Mixture
from refine_pl.data.packing import PackSet, collate_packs
from refine_pl.data.paths import named_by
from refine_pl.data.sequences import (
    Numbers,
    Pieces,
    SequenceSet,
    beginnings,
    spread,
    whole_documents,
)
from refine_pl.data.splits import Chooser, Split
from refine_pl.data.token_cache import Manifest, TokenCache, tokenized
from refine_pl.tokenizers import Tokenizer

# What decides which tokens a place in an epoch stands for.
_SETTINGS = (
    "corpus, tokenizer, sequence_length, min_tokens, crop, min_last_tokens, packing, val_corpus, "
    "num_validation_documents, split_seed, seed and batch_size"
)


NO_CORPUS: Any = None  # the type of the argument then says what may be given


class HeldOut(NamedTuple):
    """Where validation sequences are from."""

    source: TokenCache
    documents: Numbers


class TextData(ResumableData):
    """Documents as sequences.

    Documents shorter than ``min_tokens`` and documents that begin alike (in their first
    ``sequence_length`` tokens) are left out; validation documents are never trained on. Batches are
    the same on any number of ranks, and a run resumes at the exact batch that it stopped at.

    Args:
        corpus: where the documents come from.
        tokenizer: text to token ids.
        sequence_length: tokens of a sequence, T; a shorter document is padded on the right.
        batch_size: sequences of a training batch, over all ranks together.
        min_tokens: shorter documents are left out; ``sequence_length`` if not set.
        crop: what an epoch reads of a document: its ``first`` T tokens, another ``random`` T in
            every epoch, or ``all`` of it, in pieces of T tokens that do not overlap. With ``all``,
            only copies of a whole document and what begins like a validation document are left out.
        min_last_tokens: with ``crop: all``, a shorter last piece of a document is left out.
        packing: tokens of a pack. Sequences of similar length are read together, as many as fit
            when padded to the longest; each is computed as if it stood alone. ``batch_size`` and
            the sizes of ``model`` then count packs. Without it a sequence is a row.
        num_validation_documents: documents of the corpus that are kept for validation; with
            ``val_corpus`` how many of that one are used, all if 0.
        val_corpus: validation documents of your own.
        val_crops: pieces of T tokens that validation reads of each document, from its beginning to
            its end; 1 is the beginning.
        validation_batch_size: sequences of a validation batch, over all ranks; ``batch_size`` if
            not set.
        split_seed: of the choice of validation documents.
        seed: of the order and the random crops.
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
        crop: Literal["first", "random", "all"] = "first",
        min_last_tokens: PositiveInt = 2,
        packing: PositiveInt | None = None,
        num_validation_documents: NonNegativeInt = 0,
        val_corpus: Corpus = NO_CORPUS,
        val_crops: PositiveInt = 1,
        validation_batch_size: PositiveInt | None = None,
        split_seed: int = 0,
        seed: int = 0,
        num_workers: NonNegativeInt = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(batch_size, validation_batch_size, seed, num_workers)
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.crop = crop
        self.min_last_tokens = min_last_tokens
        self.packing = packing
        self.num_validation_documents = num_validation_documents
        self.val_corpus: Corpus | None = val_corpus
        self.val_crops = val_crops
        self.choose = Chooser(
            sequence_length, min_tokens or sequence_length, split_seed, crop == "all"
        )
        self.cache_dir = Path(cache_dir) if cache_dir else None

    @property
    def min_tokens(self) -> int:
        """Shorter documents are left out."""
        return self.choose.min_tokens

    def prepare_data(self) -> None:
        """Tokenize once per machine, before the other ranks look for the result."""
        _ = self._cache, self._val_cache

    def setup(self, stage: str | None = None) -> None:
        """Open the tokens and choose the documents; the same for every command.

        Raises:
            DataError: the documents are too few or too short, or ranks see different ones.
            ConfigError: a batch cannot be shared evenly, or nothing is left for training.
        """
        _ = self._split

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches; sequences that do not fill the last one wait for the next epoch."""
        rows, sequences = self._training, self._sequences
        fingerprint = digest_of(
            self._cache.manifest.corpus_hash,
            self._cache.manifest.tokenizer,
            sequences.pieces.documents.tobytes(),
            sequences.pieces.starts.tobytes(),
            self.sequence_length,
            self.crop,
            self.packing,
            None if self._mixed is None else self._mixed.quotas.tolist(),
            self.seed,
            self.batch_size,
        )
        make = collate_packs if isinstance(rows, PackSet) else collate
        return self.loader(rows, make, fingerprint, _SETTINGS, self._mixed)

    def val_dataloader(self) -> ResumableLoader | list[Any]:
        """The same pieces of every validation document each time, in a fixed order."""
        source, documents = self._held_out
        if not len(documents):
            return []
        lengths = source.lengths[documents]
        pieces = spread(documents, lengths, self.sequence_length, self.val_crops)
        return self.loader(SequenceSet(source, pieces, self.sequence_length), collate)

    def describe(self) -> dict[str, str | int | float]:
        """What the data are, for logs and reports. Reads them if that has not happened yet."""
        cache, split, rows, sequences = self._cache, self._split, self._training, self._sequences
        described: dict[str, str | int | float] = {
            "corpus": self.corpus.label,
            "corpus_hash": cache.manifest.corpus_hash[:12],
            "tokenizer": self.tokenizer.label,
            "documents": len(cache),
            "tokens": cache.manifest.tokens,
            "training_documents": len(split.training),
            "training_sequences_per_epoch": len(sequences),
            "training_tokens_per_epoch": int(sequences.lengths.sum()),
            "validation_documents": len(self._held_out.documents),
            "short_documents": split.short_documents,
            "duplicate_documents": split.duplicate_documents,
            "skipped_rows": cache.manifest.skipped_rows,
            f"left_over_{self._unit}_per_epoch": self._epoch_rows % self.batch_size,
        }
        if isinstance(rows, PackSet):
            described["training_packs_per_epoch"] = len(rows)
            described["padding_share"] = round(rows.padding_share, 4)
        shares = list(self._shares())
        for name, number, tokens in shares:
            described[f"{name}_{self._unit}_per_epoch"] = number
            described[f"{name}_tokens_per_epoch"] = tokens
        if shares:
            described["training_tokens_per_epoch"] = sum(tokens for *_, tokens in shares)
        if self.val_corpus is not None and self._val_cache is not None:
            described["validation_corpus"] = self.val_corpus.label
            described["validation_corpus_hash"] = self._val_cache.manifest.corpus_hash[:12]
        return described

    @cached_property
    def _cache(self) -> TokenCache:
        # Only the first rank of a machine prepares; the others open what it made.
        return self._tokens("corpus", self.corpus)

    @cached_property
    def _val_cache(self) -> TokenCache | None:
        return None if self.val_corpus is None else self._tokens("val_corpus", self.val_corpus)

    def _tokens(self, key: str, corpus: Corpus) -> TokenCache:
        with named_by(f"{key}.init_args.paths of the data"):
            return tokenized(corpus, self.tokenizer, self.cache_dir, rank_zero_info)

    @cached_property
    def _divided(self) -> tuple[Split, HeldOut]:
        if self._val_cache is None:
            split = self.choose.divide(self._cache, self.num_validation_documents)
            return split, HeldOut(self._cache, split.validation)
        number = self.num_validation_documents
        documents, foreign = self.choose.all_held_out(self._val_cache, number)
        return self.choose.divide(self._cache, 0, foreign), HeldOut(self._val_cache, documents)

    @property
    def _held_out(self) -> HeldOut:
        return self._divided[1]

    @cached_property
    def _training(self) -> SequenceSet | PackSet:
        """What batches of an epoch are made of."""
        if self.packing is None:
            return self._sequences
        parts = self._parts
        return PackSet(self._sequences, self.packing, self.batch_size, self.seed, parts)

    @cached_property
    def _parts(self) -> Numbers | None:
        """Which corpus of a weighted mixture each sequence is of."""
        mixture, cache = self.corpus, self._cache
        if not (isinstance(mixture, Mixture) and mixture.weights):
            return None
        documents = self._sequences.pieces.documents
        different, place = np.unique(documents, return_inverse=True)
        return np.array([mixture.part_of(cache.name(int(i))) for i in different])[place]

    @cached_property
    def _mixed(self) -> MixedOrder | None:
        """The order of a weighted mixture."""
        parts, rows, mixture = self._parts, self._training, self.corpus
        if parts is None or not isinstance(mixture, Mixture):
            return None
        if isinstance(rows, PackSet):
            parts = parts[[int(pack[0]) for pack in rows.packs]]
        return MixedOrder(parts, mixture, self.batch_size, self.seed)

    @property
    def _epoch_rows(self) -> int:
        return len(self._training) if self._mixed is None else len(self._mixed)

    def _shares(self) -> Iterator[tuple[str, int, int]]:
        """The corpora of a weighted mixture, and what of each an epoch holds: rows, and tokens.

        Tokens are those of as many rows of mean length.
        """
        if self._mixed is None or not isinstance(self.corpus, Mixture):
            return
        rows, lengths = self._training, self._sequences.lengths
        if isinstance(rows, PackSet):
            lengths = np.array([lengths[pack].sum() for pack in rows.packs])
        for part, name in enumerate(self.corpus.corpora):
            number = int(self._mixed.quotas[part])
            yield name, number, round(number * float(lengths[self._mixed.members[part]].mean()))

    @cached_property
    def _sequences(self) -> SequenceSet:
        """The sequences of an epoch."""
        documents, length = self._divided[0].training, self.sequence_length
        pieces: Pieces = beginnings(documents)
        if self.crop == "all":
            lengths = self._cache.lengths[documents]
            pieces = whole_documents(documents, lengths, length, self.min_last_tokens)
        random_seed = self.seed if self.crop == "random" else None
        return SequenceSet(self._cache, pieces, length, random_seed)

    @cached_property
    def _split(self) -> Split:
        """The documents that are used, checked and announced."""
        cache, (split, held_out) = self._cache, self._divided
        self.check_training(
            len(self._training),
            f"training {self._name}",
            f"{len(cache):,} documents, of which {split.short_documents:,} are shorter "
            f"than {self.min_tokens:,} tokens, {split.duplicate_documents:,} are duplicates "
            f"and {len(split.validation):,} are for validation",
            "lower batch_size, min_tokens or num_validation_documents, or use more documents",
        )
        shared = {"batch_size": self.batch_size}
        if number := len(held_out.documents):
            # An uneven last batch would leave some ranks waiting for the others' forward.
            shared["validation_batch_size"] = self.validation_batch_size
            shared["num_validation_documents"] = number
        hashes = [c.manifest.corpus_hash for c in (cache, self._val_cache) if c is not None]
        content = hashes[0] if len(hashes) == 1 else digest_of(hashes)
        self.check_ranks(shared, content, "corpus", self.corpus.label)
        rank_zero_info("\n".join(self._summary(split, held_out)))
        return split

    @property
    def _unit(self) -> str:
        """What ``batch_size`` counts."""
        return "sequences" if self.packing is None else "packs"

    @property
    def _name(self) -> str:
        """What ``batch_size`` counts, for people."""
        if self.packing is not None:
            return "packs"
        return "pieces of documents" if self.crop == "all" else "documents"

    def _summary(self, split: Split, held_out: HeldOut) -> list[str]:
        manifest, rows, sequences = self._cache.manifest, self._training, self._sequences
        lines = [self._corpus_line(self.corpus, manifest)]
        if self.val_corpus is not None:
            lines.append(self._corpus_line(self.val_corpus, held_out.source.manifest, "Validation"))
        lines.append(
            f"  used: {len(split.training):,} for training, {len(held_out.documents):,} for "
            f"validation; left out: {split.short_documents:,} shorter than {self.min_tokens:,} "
            f"tokens, {split.duplicate_documents:,} duplicates"
        )
        if self.crop == "all":
            read, whole = sequences.lengths.sum(), self._cache.lengths[split.training].sum()
            lines.append(
                f"  {len(sequences):,} pieces of up to {self.sequence_length:,} tokens hold "
                f"{read:,} of their {whole:,} tokens"
            )
        if isinstance(rows, PackSet):
            lines.append("  " + rows.summary())
        shares = list(self._shares())
        for name, number, tokens in shares:
            lines.append(
                f"  {name}: {number:,} {self._name} of an epoch, about {tokens:,} tokens "
                f"({tokens / sum(each for *_, each in shares):.1%})"
            )
        lines.append(self.epoch_line(self._epoch_rows, self._name))
        if count := manifest.skipped_rows:
            lines.append(f"  skipped rows: {count:,}; the first was {manifest.first_skipped}")
        return lines

    def _corpus_line(self, corpus: Corpus, manifest: Manifest, title: str = "Data") -> str:
        return (
            f"{title}: {corpus.label} (hash {manifest.corpus_hash[:12]}), "
            f"{manifest.documents:,} documents, {manifest.tokens:,} tokens by "
            f"{self.tokenizer.label}"
        )
