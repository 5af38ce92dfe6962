"""Documents of a token cache as rows of at most ``sequence_length`` tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from refine_pl.data.collate import Row
from refine_pl.data.loader import BatchKey
from refine_pl.data.token_cache import TokenCache
from refine_pl.randomness import stream_seed


class TextRows(Dataset[list[Row]]):
    """One row per document; reads a whole batch at a time.

    Args:
        cache: the tokens.
        documents: indices of the documents in the cache.
        sequence_length: the most tokens that a row has.
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

    def __getitem__(self, key: BatchKey) -> list[Row]:
        return [
            self._row(self.documents[index], number, key.epoch)
            for index, number in zip(key.indices, key.rows, strict=True)
        ]

    def _row(self, document: int, number: int, epoch: int) -> Row:
        start = 0
        spare = self.cache.num_tokens(document) - self.sequence_length
        if self.crop == "random" and spare > 0:
            start = stream_seed(self.seed, epoch, document, "crop") % (spare + 1)
        tokens = self.cache.document(document, start, start + self.sequence_length)
        return Row(
            tokens=torch.from_numpy(tokens.astype(np.int64)),
            number=number,
            document=self.cache.names[document],
        )
