"""Text that is tokenized while it is read: for corpora that are too large to tokenize first.

Documents are read in their order, some at a time. Such a block is tokenized, cut, and its sequences
are shuffled; then the next one follows. So a place in the stream is three numbers: which pass over
the corpus, the row that the block begins with, and how many of its sequences were given. A resume
reads that block again, and nothing else is tokenized twice.

Every process reads the whole stream and takes its rows of each batch: batches are the same on any
number of processes, as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from refine_pl.data.cache_files import digest_of
from refine_pl.data.corpora import Corpus
from refine_pl.data.data_module import ResumableData
from refine_pl.data.loader import ResumableLoader, TokenSequence, collate
from refine_pl.data.paths import named_by
from refine_pl.data.sequences import SequenceSet, spread
from refine_pl.data.splits import Chooser
from refine_pl.data.text import NO_CORPUS
from refine_pl.data.token_cache import TokenCache, check_ids, tokenized
from refine_pl.errors import CheckpointError, DataError
from refine_pl.randomness import stream_seed
from refine_pl.records import Batch
from refine_pl.tokenizers import Tokenizer

_SETTINGS = (
    "corpus, tokenizer, sequence_length, min_tokens, crop, min_last_tokens, shuffle_documents, "
    "seed and batch_size"
)


ENDLESS = 2**40
"""Batches of a stream, as it says."""


class Place(NamedTuple):
    """Where a stream is."""

    passes: int  # over the corpus, complete ones
    row: int  # that the block begins with
    given: int  # sequences of the block


class StreamedText(ResumableData):
    """Sequences of a corpus that is read as a stream, without an end: pass after pass.

    A run needs a number of iterations. Nothing is known of documents before they are read, so those
    that are alike are not left out, and validation needs documents of its own.

    Args:
        corpus: where the documents come from; its order is that of the stream.
        tokenizer: text to token ids.
        sequence_length: tokens of a sequence, T; a shorter document is padded on the right.
        batch_size: sequences of a training batch, over all ranks together.
        min_tokens: shorter documents are left out; ``sequence_length`` if not set.
        crop: the ``first`` T tokens of a document, or ``all`` of it, in pieces of T tokens.
        min_last_tokens: with ``crop: all``, a shorter last piece of a document is left out.
        shuffle_documents: how many are read, cut and shuffled together.
        val_corpus: validation documents; they are tokenized beforehand. None: no validation.
        num_validation_documents: how many of them are used; all if 0.
        val_crops: pieces that validation reads of each, from its beginning to its end.
        validation_batch_size: sequences of a validation batch, over all ranks; ``batch_size`` if
            not set.
        split_seed: of the choice of validation documents.
        seed: of the order.
        cache_dir: where tokens for validation are kept; ``$REFINE_PL_CACHE`` or
            ``~/.cache/refine-pl`` if not set.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        sequence_length: PositiveInt,
        batch_size: PositiveInt,
        min_tokens: PositiveInt | None = None,
        crop: Literal["first", "all"] = "all",
        min_last_tokens: PositiveInt = 2,
        shuffle_documents: PositiveInt = 256,
        val_corpus: Corpus = NO_CORPUS,
        num_validation_documents: NonNegativeInt = 0,
        val_crops: PositiveInt = 1,
        validation_batch_size: PositiveInt | None = None,
        split_seed: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(batch_size, validation_batch_size, seed, num_workers=0)
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.min_tokens = min_tokens or sequence_length
        self.crop = crop
        self.min_last_tokens = min_last_tokens
        self.shuffle_documents = shuffle_documents
        self.val_corpus: Corpus | None = val_corpus
        self.num_validation_documents = num_validation_documents
        self.val_crops = val_crops
        self.split_seed = split_seed
        self.cache_dir = Path(cache_dir) if cache_dir else None
        self._held_out: tuple[TokenCache, Any] | None = None

    def prepare_data(self) -> None:
        """Tokenize the validation documents, before the other ranks look for the result."""
        self._tokens()

    def setup(self, stage: str | None = None) -> None:
        """Choose the validation documents.

        Raises:
            DataError: they are too few or too short.
            ConfigError: a batch cannot be shared evenly.
        """
        shared, cache = {"batch_size": self.batch_size}, self._tokens()
        if cache is not None and self._held_out is None:
            chooser = Chooser(self.sequence_length, self.min_tokens, self.split_seed)
            documents, _ = chooser.all_held_out(cache, self.num_validation_documents)
            self._held_out = cache, documents
        if self._held_out is not None:
            shared["validation_batch_size"] = self.validation_batch_size
            shared["num_validation_documents"] = len(self._held_out[1])
        content = "" if cache is None else cache.manifest.corpus_hash
        self.check_ranks(shared, content, "val_corpus", self.corpus.label)
        held_out = 0 if self._held_out is None else len(self._held_out[1])
        rank_zero_info(
            f"Data: a stream of {self.corpus.label}, by {self.tokenizer.label}; "
            f"{self.shuffle_documents:,} documents are shuffled together; {held_out:,} for "
            "validation"
        )

    def train_dataloader(self) -> StreamLoader:
        """Batches without an end."""
        return StreamLoader(self, *self.ranks)

    def val_dataloader(self) -> ResumableLoader | list[Any]:
        """The same pieces of every validation document each time, in a fixed order."""
        if self.val_corpus is None:
            return []
        if self._held_out is None:
            self.setup()
        assert self._held_out is not None
        cache, documents = self._held_out
        length = self.sequence_length
        pieces = spread(documents, cache.lengths[documents], length, self.val_crops)
        return self.loader(SequenceSet(cache, pieces, length), collate)

    def describe(self) -> dict[str, str | int | float]:
        """What is known of the data, for logs and reports."""
        return {
            "corpus": f"a stream of {self.corpus.label}",
            "tokenizer": self.tokenizer.label,
            "validation_documents": 0 if self._held_out is None else len(self._held_out[1]),
        }

    def fingerprint(self) -> str:
        """A digest of what decides which tokens a place stands for, but for the corpus' content."""
        sizes = (self.sequence_length, self.min_tokens, self.crop, self.min_last_tokens)
        order = (self.shuffle_documents, self.seed, self.batch_size)
        return digest_of(self.corpus.label, self.tokenizer.fingerprint, sizes, order)

    def _tokens(self) -> TokenCache | None:
        if self.val_corpus is None:
            return None
        with named_by("val_corpus.init_args.paths of the data"):
            return tokenized(self.val_corpus, self.tokenizer, self.cache_dir, rank_zero_info)


class StreamLoader:
    """The batches of a stream for one rank. Its state is a place, the same on every rank.

    Args:
        data: what is read, and how.
        rank: of this process.
        num_ranks: processes that share each batch.
    """

    def __init__(self, data: StreamedText, rank: int, num_ranks: int) -> None:
        self.data, self.rank, self.num_ranks = data, rank, num_ranks
        self._place = Place(0, 0, 0)

    def __len__(self) -> int:
        """More than any run reads. Of a loader without a length Lightning reads one batch ahead,
        so that its state would not be that of the batch that was trained on.
        """
        return ENDLESS

    def __iter__(self) -> Iterator[Batch]:
        # A generator: where to begin is settled when the first batch is asked for.
        size = self.data.batch_size
        taken: list[TokenSequence] = []
        for place, tokens, name in self._sequences(self._place):
            taken.append(TokenSequence(tokens, len(taken), name))
            if len(taken) == size:
                self._place = place
                yield collate(taken[self.rank :: self.num_ranks])
                taken = []

    def state_dict(self) -> dict[str, Any]:
        """The place, and ``fingerprint``."""
        return {**self._place._asdict(), "fingerprint": self.data.fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches that were given.

        Raises:
            CheckpointError: the state belongs to other data or settings.
        """
        if state.get("fingerprint") != self.data.fingerprint():
            raise CheckpointError(
                "the data differ from those of the checkpoint, so its place in the stream is void",
                where="state of the training data in the checkpoint",
                allowed=f"the same {_SETTINGS}; ranks may differ",
                way_out="restore these settings, or start a new run from the checkpoint's weights",
            )
        self._place = Place(*(int(state[name]) for name in Place._fields))

    def _sequences(self, place: Place) -> Iterator[tuple[Place, torch.Tensor, str]]:
        """Sequences without an end, each with the place after it."""
        passes, row, given = place
        while True:
            found, first_row = False, row
            with named_by("corpus.init_args.paths of the data"):
                for start, documents in self._blocks(row):
                    pieces = self._pieces(documents)
                    for number, index in enumerate(self._order(passes, start, len(pieces))):
                        found = True
                        if number >= given:
                            yield Place(passes, start, number + 1), *pieces[index]
                    given = 0
            if not found and first_row == 0:
                raise DataError(
                    f"no document of {self.data.corpus.label} has {self.data.min_tokens:,} tokens",
                    where="data.min_tokens, or else data.sequence_length",
                    way_out="lower them, or use longer documents",
                )
            passes, row, given = passes + 1, 0, 0

    def _blocks(self, row: int) -> Iterator[tuple[int, list[tuple[str, str]]]]:
        """The first row of each block, and its documents."""
        rows = self.data.corpus.stream(row)
        start = row
        while block := list(islice(rows, self.data.shuffle_documents)):
            yield start, [(name, text) for _, name, text in block]
            start = block[-1][0]

    def _pieces(self, documents: list[tuple[str, str]]) -> list[tuple[torch.Tensor, str]]:
        """The sequences of some documents, in their order."""
        data, pieces = self.data, []
        encoded = data.tokenizer.encode_batch([text for _, text in documents])
        for (name, _), ids in zip(documents, encoded, strict=True):
            check_ids(ids, data.tokenizer, f"document {name}")
            if len(ids) < data.min_tokens:
                continue
            whole = torch.from_numpy(ids.astype(np.int64))
            cut = list(whole.split(data.sequence_length))
            if data.crop == "first" or (len(cut) > 1 and len(cut[-1]) < data.min_last_tokens):
                cut = cut[:1] if data.crop == "first" else cut[:-1]
            pieces += [(tokens, name) for tokens in cut]
        return pieces

    def _order(self, passes: int, start: int, number: int) -> list[int]:
        seed = stream_seed(self.data.seed, passes, start, "stream")
        order: list[int] = np.random.Generator(np.random.PCG64(seed)).permutation(number).tolist()
        return order
