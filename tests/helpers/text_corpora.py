"""Corpora of a few short documents, and small TextData on them."""

from __future__ import annotations

from refine_pl.data import Bytes, Corpus, TextData


class Own(Corpus):
    def __init__(self, documents: dict[str, str]) -> None:
        self.all = documents

    def read(self):
        yield from self.all.items()


def numbered(count: int, length: int = 24) -> Own:
    """Documents that differ everywhere: number i is spelt with its own letter."""
    return Own(
        {
            f"d{i}": "".join(chr(65 + i) + chr(48 + j) for j in range(length // 2))
            for i in range(count)
        }
    )


def text_data(corpus: Corpus, **changes) -> TextData:
    settings = {"sequence_length": 8, "batch_size": 4}
    return TextData(corpus, Bytes(), **(settings | changes))


def texts(loader) -> list[list[str]]:
    return [
        [Bytes().decode(row[:n].tolist()) for row, n in zip(b.tokens, b.num_tokens, strict=True)]
        for b in loader
    ]
