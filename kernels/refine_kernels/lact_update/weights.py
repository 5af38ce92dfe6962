"""The fast weights of LaCT, and what is carried beside them from chunk to chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class FastWeights(NamedTuple):
    """``f(x) = w1 (silu(w0 x) * (w2 x))``; ``d`` is the width of a head, ``h`` that inside."""

    w0: Tensor  # [..., h, d]
    w1: Tensor  # [..., d, h]
    w2: Tensor  # [..., h, d]

    def map(self, function: Callable[[Tensor], Tensor]) -> FastWeights:
        """The function of each matrix."""
        return FastWeights(*(function(w) for w in self))


class FastState(NamedTuple):
    """What enters a chunk."""

    applied: FastWeights
    main: FastWeights | None = None  # with pre-norm: the unnormalised copy that is added to
    last: FastWeights | None = None  # with momentum: the direction of the chunk before

    def parts(self) -> tuple[FastWeights, ...]:
        """The parts that there are."""
        return tuple(part for part in self if part is not None)

    def map(self, function: Callable[[Tensor], Tensor]) -> FastState:
        """The function of each matrix."""
        main = None if self.main is None else self.main.map(function)
        last = None if self.last is None else self.last.map(function)
        return FastState(self.applied.map(function), main, last)


def join(states: Sequence[FastState], function: Callable[[list[Tensor]], Tensor]) -> FastState:
    """The function (``torch.stack``, ``torch.cat``) of the matrices that belong together."""
    parts: list[FastWeights | None] = []
    for same in zip(*states, strict=True):
        if any(part is None for part in same):
            parts.append(None)
        else:
            matrices = zip(*same, strict=True)
            parts.append(FastWeights(*(function(list(each)) for each in matrices)))
    assert parts[0] is not None
    return FastState(parts[0], *parts[1:])


class FastTokens(NamedTuple):
    """What tokens bring to an update of the fast weights, ``[rows, tokens, heads, ...]``."""

    k: Tensor  # [..., d]
    v: Tensor  # [..., d]
    rates: Tensor  # [..., 3 * r], of w0, w1 and w2; r is 1 or d
    momentum: Tensor | None  # [...], in (0, 1)

    def map(self, function: Callable[[Tensor], Tensor]) -> FastTokens:
        """The function of each tensor."""
        k, v, rates, momentum = (None if x is None else function(x) for x in self)
        assert k is not None
        assert v is not None
        assert rates is not None
        return FastTokens(k, v, rates, momentum)

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that there are."""
        return tuple(x for x in self if x is not None)


def both(a: FastTokens, b: FastTokens, function: Callable[[Tensor, Tensor], Tensor]) -> FastTokens:
    """The function of the tensors that belong together."""
    pairs = zip(a, b, strict=True)
    k, v, rates, momentum = (None if x is None or y is None else function(x, y) for x, y in pairs)
    assert k is not None
    assert v is not None
    assert rates is not None
    return FastTokens(k, v, rates, momentum)


@dataclass(frozen=True, slots=True)
class UpdateRule:
    """How a chunk changes the fast weights."""

    chunk_size: int
    prenorm: bool = False
    muon: torch.dtype | None = None  # type of the Newton-Schulz iteration; None: no iteration
