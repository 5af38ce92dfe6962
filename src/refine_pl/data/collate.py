"""Sequences of unequal length become one batch, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refine_pl.records import Batch


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One sequence on its way into a batch."""

    tokens: Tensor  # [T] int64
    number: int  # names the sequence within one update, over all ranks
    document: str  # for people


def collate(sequences: Sequence[TokenSequence], pad_token_id: int = 0) -> Batch:
    """Pad sequences to the longest: tokens ``[B, T]`` int64 and num_tokens ``[B]`` int64.

    Args:
        sequences: at least one.
        pad_token_id: what stands after a sequence's end; nothing reads it.
    """
    tokens = torch.nn.utils.rnn.pad_sequence(
        [sequence.tokens for sequence in sequences], batch_first=True, padding_value=pad_token_id
    )
    return Batch(
        tokens=tokens,
        num_tokens=torch.tensor([len(sequence.tokens) for sequence in sequences]),
        rows=tuple(sequence.number for sequence in sequences),
        documents=tuple(sequence.document for sequence in sequences),
    )
