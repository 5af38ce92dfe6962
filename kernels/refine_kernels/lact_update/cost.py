"""What the loop over chunks costs, against its matrix products alone.

The products are those of reading (three for each chunk) and of the direction (six for each chunk
but the last), and in the backward pass two for each of them. Everything else of the loop, that is
activations, rates, momentum, row norms, copies, is the difference. Newton-Schulz steps are products
of their own and left out on both sides.
"""

from __future__ import annotations

import ctypes
import itertools
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refine_kernels.backends import CompiledBackend
from refine_kernels.clock import now
from refine_kernels.lact_update.choice import BY_TRITON, choose_terms
from refine_kernels.lact_update.interface import lact_update
from refine_kernels.lact_update.precision import Precision, operand_dtype
from refine_kernels.lact_update.stacked import BY_TORCH
from refine_kernels.lact_update.terms import EAGER
from refine_kernels.lact_update.weights import FastTokens, FastWeights, UpdateRule
from refine_kernels.records import map_numbers


@dataclass(frozen=True, slots=True)
class Sizes:
    """A loop: ``batch`` rows of ``length`` tokens, ``heads`` of fast weights ``inner x width``."""

    length: int
    heads: int
    width: int
    chunk_size: int
    inner: int
    batch: int = 1
    rates: int = 3  # of a token and head, 3 or 3 * width
    momentum: bool = True
    prenorm: bool = False

    @property
    def rule(self) -> UpdateRule:
        """Of the loop that is timed."""
        return UpdateRule(self.chunk_size, self.prenorm)


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of each round of one pass, ours and the products' in turn."""

    name: str
    loop: list[float]
    products: list[float]

    @property
    def ratios(self) -> list[float]:
        """Loop to products, round by round."""
        return [a / b for a, b in zip(self.loop, self.products, strict=True)]

    @property
    def ratio(self) -> float:
        """Their median."""
        return statistics.median(self.ratios)


def keep_memory() -> bool:
    """Let the C library keep what is freed, as other allocators do; whether it does.

    It gives large pieces back to the system, and the loop, unlike the products, has large results.
    To fault their pages in again can take longer than to compute them, in a virtual machine above
    all; that is a cost of the allocator's.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    trim_threshold, mmap_threshold = -1, -3  # of mallopt(3)
    return all(library.mallopt(name, 2**31 - 1) == 1 for name in (trim_threshold, mmap_threshold))


def problem(
    sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, FastTokens, FastWeights]:
    """Random queries, tokens ``[B, T, H, ...]`` and initial weights."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    def tokens(*last: int) -> Tensor:
        return draw(sizes.batch, sizes.length, sizes.heads, *last)

    q, k, v = (torch.nn.functional.normalize(tokens(sizes.width), dim=-1) for _ in range(3))
    rates = tokens(sizes.rates).sigmoid() * 0.01
    momentum = tokens().sigmoid() if sizes.momentum else None

    def weights(rows: int, columns: int) -> Tensor:
        return draw(sizes.heads, rows, columns) / columns**0.5

    into = [weights(sizes.inner, sizes.width) for _ in range(2)]
    initial = FastWeights(into[0], weights(sizes.width, sizes.inner), into[1])
    return q, FastTokens(k, v, rates, momentum), initial


def element_wise(
    sizes: Sizes,
    backend: CompiledBackend,
    device: torch.device,
    dtype: torch.dtype,
    operands: torch.dtype | None = None,
) -> str:
    """How the loop's element-wise work is done: ``compiled``, ``uncompiled``, ``by Triton``."""
    elements = sizes.length * sizes.heads * sizes.inner
    chosen = choose_terms(backend, device, dtype, operands or dtype, elements, sizes.inner)
    if chosen is BY_TRITON:
        return "by Triton"
    return "uncompiled" if chosen in (EAGER, BY_TORCH) else "compiled"


def costs(
    sizes: Sizes,
    backend: CompiledBackend,
    repeats: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    precision: Precision = "auto",
) -> list[Cost]:
    """Of the forward pass without gradients, and of forward and backward."""
    q, tokens, initial = problem(sizes, device, dtype)
    operands = operand_dtype(precision, q, dtype)
    products, gradient = _Products(sizes, device, operands), torch.randn_like(q)
    how: dict[str, Any] = {"backend": backend, "precision": precision}

    def forward() -> None:
        with torch.no_grad():
            lact_update(q, tokens, initial, sizes.rule, **how)

    def both() -> None:
        given = (q, tokens, initial)
        leaves = map_numbers(lambda x: x.detach().requires_grad_(), given)
        lact_update(*leaves, sizes.rule, **how).output.backward(gradient)

    def products_both() -> None:
        products.forward()
        products.backward()

    return [
        _in_turn("forward", forward, products.forward, repeats, device),
        _in_turn("forward and backward", both, products_both, repeats, device),
    ]


def _in_turn(
    name: str,
    loop: Callable[[], None],
    products: Callable[[], None],
    repeats: int,
    device: torch.device,
) -> Cost:
    cost = Cost(name, [], [])
    for done in range(repeats + 1):
        for work, seconds in ((loop, cost.loop), (products, cost.products)):
            start = now(device)
            work()
            spent = now(device) - start
            if done > 0:  # the first round warms up
                seconds.append(spent)
    return cost


class _Products:
    """The loop's matrix products on matrices of the right shapes, and nothing else.

    Every chunk has matrices of its own, as in the loop: a single one would never leave the cache.
    """

    def __init__(self, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> None:
        rows, chunk = sizes.batch * sizes.heads, min(sizes.chunk_size, sizes.length)
        self.chunks = -(-sizes.length // sizes.chunk_size)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, dtype=dtype)

        narrow = [draw(rows, chunk, sizes.width) for _ in range(3 * self.chunks)]  # q, k and v
        wide = [draw(rows, chunk, sizes.inner) for _ in range(3 * self.chunks)]  # a, b and e
        self.narrow, self.wide = itertools.cycle(narrow), itertools.cycle(wide)
        self.matrix = draw(rows, sizes.inner, sizes.width)

    def forward(self) -> None:
        """Reading: into twice, out of once. Direction: into three times, over tokens thrice."""
        for i in range(self.chunks):
            self._times(into=2, out_of=1, over=0)
            if i + 1 < self.chunks:
                self._times(into=3, out_of=0, over=3)

    def backward(self) -> None:
        """Two products for each of the forward's."""
        for i in range(self.chunks):
            self._times(into=1, out_of=2, over=3)
            if i + 1 < self.chunks:
                self._times(into=3, out_of=6, over=3)

    def _times(self, into: int, out_of: int, over: int) -> None:
        for _ in range(into):  # tokens of a head's width to the inner one
            torch.bmm(next(self.narrow), self.matrix.mT)
        for _ in range(out_of):
            torch.bmm(next(self.wide), self.matrix)
        for _ in range(over):  # a matrix, summed over tokens
            torch.bmm(next(self.wide).mT, next(self.narrow))
