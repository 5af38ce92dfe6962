"""Times LaCT's chunk loop against its matrix products alone, after checking it.

    python kernels/benchmarks/lact.py --length 8192 --heads 4 --width 384 --chunk_size 2048

The products are those of reading (three for each chunk) and of the direction (six for each chunk
but the last), and in the backward pass two for each of them. Everything else of the loop, that is
activations, rates, momentum, row norms, copies, is the difference. Both run in turn; the ratio is
the median of the ratios of single rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from refine_kernels.lact_update import FastTokens, FastWeights, UpdateRule, lact_update
from refine_kernels.lact_update.reference import lact_reference


class Products:
    """The loop's matrix products on matrices of the right shapes, and nothing else."""

    def __init__(self, args: argparse.Namespace) -> None:
        rows, width, inner = args.batch * args.heads, args.width, args.inner
        chunk = min(args.chunk_size, args.length)
        self.narrow = torch.randn(rows, chunk, width)
        self.wide = torch.randn(rows, chunk, inner)
        self.matrix = torch.randn(rows, inner, width)
        self.chunks = -(-args.length // args.chunk_size)

    def _into(self) -> Tensor:  # tokens of a head's width to the inner one
        return self.narrow @ self.matrix.mT

    def _out_of(self) -> Tensor:
        return self.wide @ self.matrix

    def _over_tokens(self) -> Tensor:  # a matrix, summed over tokens
        return self.wide.mT @ self.narrow

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
        for _ in range(into):
            self._into()
        for _ in range(out_of):
            self._out_of()
        for _ in range(over):
            self._over_tokens()


def problem(args: argparse.Namespace) -> tuple[Tensor, FastTokens, FastWeights]:
    """Random tokens ``[B, T, H, d]`` and initial weights."""

    def tokens(*last: int) -> Tensor:
        return torch.randn(args.batch, args.length, args.heads, *last)

    q, k, v = (torch.nn.functional.normalize(tokens(args.width), dim=-1) for _ in range(3))
    rates = tokens(3).sigmoid() * 0.01

    def weights(rows: int, columns: int) -> Tensor:
        return torch.randn(args.heads, rows, columns) / columns**0.5

    initial = FastWeights(
        weights(args.inner, args.width),
        weights(args.width, args.inner),
        weights(args.inner, args.width),
    )
    return q, FastTokens(k, v, rates, tokens().sigmoid()), initial


def check() -> float:
    """How far the loop is from its definition on a small problem, relative."""
    args = argparse.Namespace(batch=1, length=50, heads=1, width=8, inner=8)
    q, tokens, initial = problem(args)
    rule = UpdateRule(16)
    got = lact_update(q, tokens, initial, rule).output[0, :, 0]
    one = tokens.map(lambda x: x[0, :, 0])
    expected, _ = lact_reference(q[0, :, 0], one, initial.map(lambda w: w[0]), rule)
    return float((got - expected).norm() / expected.norm())


def in_turn(
    works: list[Callable[[], object]], repeats: int
) -> tuple[list[float], list[list[float]]]:
    """Medians of the works' seconds, and the seconds of each round, the first not counted."""
    rounds = []
    for _ in range(repeats + 1):
        seconds = []
        for work in works:
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        rounds.append(seconds)
    rounds = rounds[1:]
    return [statistics.median(column) for column in zip(*rounds, strict=True)], rounds


def main() -> None:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1, help="rows")
    parser.add_argument("--length", type=int, default=8192, help="tokens")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=384, help="of a head")
    parser.add_argument("--inner", type=int, default=None, help="inner width, that of a head")
    parser.add_argument("--chunk_size", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    args.inner = args.inner or args.width
    torch.manual_seed(0)
    apart = check()
    if not apart < 1e-5:
        raise SystemExit(f"the loop is {apart:.1e} from its definition; not timed")
    q, tokens, initial = problem(args)
    rule, products = UpdateRule(args.chunk_size), Products(args)

    def forward() -> None:
        with torch.no_grad():
            lact_update(q, tokens, initial, rule)

    def both() -> None:
        leaves = [x.detach().requires_grad_() for x in (q, *tokens.tensors(), *initial)]
        fast, start = FastTokens(*leaves[1:5]), FastWeights(*leaves[5:])
        lact_update(leaves[0], fast, start, rule).output.sum().backward()

    def products_both() -> None:
        products.forward()
        products.backward()

    print(f"loop {apart:.1e} from its definition; {torch.get_num_threads()} threads")
    print(f"{'':<24}{'loop s':>10}{'products s':>12}{'ratio':>8}{'min':>8}{'max':>8}")
    for name, loop, alone in (
        ("forward", forward, products.forward),
        ("forward and backward", both, products_both),
    ):
        medians, rounds = in_turn([loop, alone], args.repeats)
        ratios = [a / b for a, b in rounds]
        print(
            f"{name:<24}{medians[0]:>10.3f}{medians[1]:>12.3f}{statistics.median(ratios):>8.2f}"
            f"{min(ratios):>8.2f}{max(ratios):>8.2f}"
        )


if __name__ == "__main__":
    main()
