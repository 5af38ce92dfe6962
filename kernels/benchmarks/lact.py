"""Times LaCT's chunk loop against its matrix products alone, after checking it.

    python kernels/benchmarks/lact.py --length 8192 --heads 4 --width 384 --chunk_size 2048

Both run in turn; the ratio is the median of the ratios of single rounds.
"""

from __future__ import annotations

import argparse
import statistics
from typing import get_args

import torch

from refine_kernels.backends import CompiledBackend
from refine_kernels.lact_update import UpdateRule, lact_update
from refine_kernels.lact_update.cost import Sizes, costs, element_wise, keep_memory, problem
from refine_kernels.lact_update.reference import lact_reference


def check() -> float:
    """How far the loop is from its definition on a small problem, relative."""
    sizes = Sizes(length=50, heads=1, width=8, chunk_size=16, inner=8)
    q, tokens, initial = problem(sizes, torch.device("cpu"), torch.float32)
    got = lact_update(q, tokens, initial, UpdateRule(16)).output[0, :, 0]
    one = tokens.map(lambda x: x[0, :, 0])
    expected, _ = lact_reference(q[0, :, 0], one, initial.map(lambda w: w[0]), UpdateRule(16))
    return float((got - expected).norm() / expected.norm())


def main() -> None:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1, help="rows")
    parser.add_argument("--length", type=int, default=8192, help="tokens")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=384, help="of a head")
    parser.add_argument("--inner", type=int, default=None, help="inner width, that of a head")
    parser.add_argument("--chunk_size", type=int, default=2048)
    parser.add_argument("--backend", choices=get_args(CompiledBackend), default="auto")
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--give_back", action="store_true", help="freed memory to the system")
    args = parser.parse_args()
    kept = not args.give_back and keep_memory()
    torch.manual_seed(0)
    apart = check()
    if not apart < 1e-5:
        raise SystemExit(f"the loop is {apart:.1e} from its definition; not timed")
    inner = args.inner or args.width
    sizes = Sizes(args.length, args.heads, args.width, args.chunk_size, inner, args.batch)
    device = torch.device(args.device)
    operands = torch.bfloat16 if args.precision == "bf16" else torch.float32
    how = element_wise(sizes, args.backend, device, torch.float32, operands)
    print(
        f"loop {apart:.1e} from its definition; {torch.get_num_threads()} threads; "
        f"{args.precision} products, element-wise work {how}; "
        f"freed memory {'kept' if kept else 'given back'}"
    )
    print(f"{'':<24}{'loop s':>10}{'products s':>12}{'ratio':>8}{'min':>8}{'max':>8}")
    for cost in costs(sizes, args.backend, args.repeats, device, precision=args.precision):
        loop, products = statistics.median(cost.loop), statistics.median(cost.products)
        print(
            f"{cost.name:<24}{loop:>10.3f}{products:>12.3f}{cost.ratio:>8.2f}"
            f"{min(cost.ratios):>8.2f}{max(cost.ratios):>8.2f}"
        )


if __name__ == "__main__":
    main()
