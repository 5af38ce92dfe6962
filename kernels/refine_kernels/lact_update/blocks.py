"""Pieces of a chunk: they bound the memory between two matrix products.

Tokens are ``[B, M, H, w]``, sets of weights ``[B, H, ...]``. A block is some rows, tokens and
heads: tokens ``[G, m, w]`` and weights ``[G, ...]``, one of ``G`` for each row and head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from refine_kernels.lact_update.weights import FastWeights

# Elements of what a block holds between two products, by the type of device; and the tokens that it
# should have before it takes in another head.
BLOCK_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}
BLOCK_TOKENS = 256


class Block(NamedTuple):
    """Some rows, tokens and heads."""

    rows: slice
    tokens: slice
    heads: slice

    def sets(self, weights: Sequence[Tensor]) -> FastWeights:
        """Of weights ``[B, H, ...]`` the block's, ``[G, ...]``, in place if they are apart."""
        return FastWeights(*(w[self.rows, self.heads].flatten(0, 1) for w in weights))

    def take(self, x: Tensor) -> Tensor:
        """Of tokens ``[B, M, H, w]`` the block's, ``[G, m, w]``, in place if it is of one row."""
        return self._place(x).flatten(0, 1)

    def copy(self, x: Tensor) -> Tensor:
        """The same side by side: a sum over tokens takes longer where there are gaps."""
        return self.take(x).contiguous()

    def room(self, x: Tensor) -> Tensor:
        """Where to write what :meth:`put` puts into ``x``: right there if it is of one row."""
        place = self._place(x)
        return place[0] if len(place) == 1 else x.new_empty(place.shape).flatten(0, 1)

    def put(self, x: Tensor, found: Tensor) -> None:
        """Write ``found``, ``[G, m, w]`` or as rows, where :meth:`take` reads."""
        place = self._place(x)
        if found.data_ptr() != place.data_ptr():
            place.copy_(found.view(place.shape))

    def _place(self, x: Tensor) -> Tensor:
        return x[self.rows, self.tokens, self.heads].transpose(1, 2)


def blocks(tokens: Tensor, inner: int) -> Iterator[Block]:
    """The blocks of tokens ``[B, M, H, d]``, for weights with an inner width of ``inner``."""
    batch, length, heads, _ = tokens.shape
    budget = BLOCK_ELEMENTS.get(tokens.device.type, 2**26)
    each = min(max(budget // (min(BLOCK_TOKENS, length) * inner), 1), heads)
    span = max(budget // (each * inner), 32)
    rows = max(span // length, 1) if each == heads else 1
    span = -(-length // -(-length // span))  # of equal size, lest the last one be tiny
    for row in range(0, batch, rows):
        for head in range(0, heads, each):
            for first in range(0, length, span):
                yield Block(
                    slice(row, row + rows), slice(first, first + span), slice(head, head + each)
                )


def as_rows(*tensors: Tensor) -> list[Tensor]:
    """Tensors ``[G, m, w]`` as rows ``[G * m, w]``."""
    return [x.flatten(0, 1) for x in tensors]
