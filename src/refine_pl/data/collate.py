"""Rows of unequal length become one batch, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refine_pl.records import Batch


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence on its way into a batch."""

    tokens: Tensor  # [T] int64
    number: int  # names the row within one update, over all ranks
    document: str  # for people


def collate(rows: Sequence[Row], pad_token_id: int = 0) -> Batch:
    """Pad rows to the longest of them: tokens ``[B, T]`` int64 and num_tokens ``[B]`` int64.

    Args:
        rows: at least one row.
        pad_token_id: what stands behind a row's end; nothing reads it.
    """
    num_tokens = torch.tensor([len(row.tokens) for row in rows], dtype=torch.int64)
    tokens = torch.full((len(rows), int(num_tokens.max())), pad_token_id, dtype=torch.int64)
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row.tokens)] = row.tokens
    return Batch(
        tokens=tokens,
        num_tokens=num_tokens,
        rows=tuple(row.number for row in rows),
        documents=tuple(row.document for row in rows),
    )
