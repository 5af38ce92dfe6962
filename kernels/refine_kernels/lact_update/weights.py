"""The fast weights of LaCT, and what is carried beside them from chunk to chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from refine_kernels.records import map_numbers


class FastWeights(NamedTuple):
    """``f(x) = w1 (silu(w0 x) * (w2 x))``; ``d`` is the width of a head, ``h`` that inside."""

    w0: Tensor  # [..., h, d]
    w1: Tensor  # [..., d, h]
    w2: Tensor  # [..., h, d]

    def map(self, function: Callable[[Tensor], Tensor]) -> FastWeights:
        """The function of each matrix."""
        return map_numbers(function, self)


class FastState(NamedTuple):
    """What enters a chunk."""

    applied: FastWeights
    main: FastWeights | None = None  # with pre-norm: the unnormalised copy that is added to
    last: FastWeights | None = None  # with momentum: the direction of the chunk before

    def map(self, function: Callable[[Tensor], Tensor]) -> FastState:
        """The function of each matrix."""
        return map_numbers(function, self)


class FastTokens(NamedTuple):
    """What tokens bring to an update of the fast weights, ``[rows, tokens, heads, ...]``."""

    k: Tensor  # [..., d]
    v: Tensor  # [..., d]
    rates: Tensor  # [..., 3 * r], of w0, w1 and w2; r is 1 or d
    momentum: Tensor | None  # [...], in (0, 1)

    def map(self, function: Callable[[Tensor], Tensor]) -> FastTokens:
        """The function of each tensor."""
        return map_numbers(function, self)


@dataclass(frozen=True, slots=True)
class UpdateRule:
    """How a chunk changes the fast weights."""

    chunk_size: int
    prenorm: bool = False
    muon: torch.dtype | None = None  # type of the Newton-Schulz iteration; None: no iteration
