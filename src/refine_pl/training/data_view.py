"""What training asks of a data module. Any of a user's own may leave any of it out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from refine_pl.records import Packs
from refine_pl.tokenizers import Tokenizer
from refine_pl.training.row_values import as_numbers


class DataView:
    """A data module as the run sees it.

    Args:
        data: the trainer's data module, or None.
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer."""
        return getattr(self.data, "tokenizer", None)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, or their numbers if there is no tokenizer."""
        return as_numbers(tokens) if self.tokenizer is None else self.tokenizer.decode(tokens)

    @property
    def sources(self) -> Mapping[str, Any] | None:
        """Data modules by name, one or more for each stage; None: it is one itself."""
        return getattr(self.data, "sources", None)

    @property
    def batch_size(self) -> int | None:
        """Rows of a batch of training, over all processes; None where stages differ."""
        size = getattr(self.data, "batch_size", None)
        return size if isinstance(size, int) else None

    @property
    def vocab_size(self) -> object:
        """Tokens that its sequences are made of."""
        return getattr(self.data, "vocab_size", getattr(self.tokenizer, "vocab_size", None))

    @property
    def special_token_ids(self) -> Mapping[str, int]:
        """Its tokenizer's, by their names in ``config.json``; none of a class that is not ours."""
        return getattr(self.tokenizer, "special_token_ids", {})

    def sequence_length(self, source: str | None = None) -> int | None:
        """Tokens of its longest sequences, of one source where it has several."""
        data = self.data if source is None else (self.sources or {}).get(source)
        length = getattr(data, "sequence_length", None)
        return length if isinstance(length, int) else None

    def is_packed(self, batch: Any = None) -> bool:
        """Whether rows of training are packs of sequences: those of ``batch``, or of all data."""
        return isinstance(batch, Packs) or (
            batch is None and getattr(self.data, "packing", None) is not None
        )

    def text_lengths(self) -> Iterator[object]:
        """Whatever it or a source of it says about the length of its texts, tokens."""
        for part in (self.data, *(self.sources or {}).values()):
            for name in ("sequence_length", "max_prompt_tokens"):
                yield getattr(part, name, None)
