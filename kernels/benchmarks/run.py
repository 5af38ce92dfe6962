"""Times each operation of refine_kernels, forward and backward, after checking it.

    python kernels/benchmarks/run.py --length 8192 --heads 4 --width 64 --vocab_size 32000

Each row: the operation, milliseconds of the forward alone (without gradients), of forward and
backward, and how far it is from its reference on a small problem of the same kind.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from refine_kernels.clock import now
from refine_kernels.delta_rule import SharedState, delta_rule, delta_rule_shared
from refine_kernels.delta_rule.reference import delta_rule_reference
from refine_kernels.gated_norm import gated_norm, rms_norm
from refine_kernels.gated_norm.reference import gated_norm_reference
from refine_kernels.short_conv import short_conv
from refine_kernels.short_conv.reference import short_conv_reference
from refine_kernels.swiglu import swiglu
from refine_kernels.swiglu.reference import swiglu_reference
from refine_kernels.token_stats import token_stats
from refine_kernels.token_stats.reference import token_stats_reference


@dataclass
class Entry:
    """One operation at one size: what is timed, and what it must equal on a small problem."""

    name: str
    inputs: list[Tensor]
    run: Callable[..., Tensor]
    check: Callable[[], float]
    close: float = 1e-3  # what the check may find


def apart(got: Tensor, expected: Tensor) -> float:
    """The relative difference of two tensors."""
    return float((got - expected).norm() / expected.norm())


def entries(args: argparse.Namespace) -> list[Entry]:
    """All operations at the sizes that were asked for."""
    device, heads, width, length = args.device, args.heads, args.width, args.length

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    def rule(rows: int, tokens: int) -> list[Tensor]:
        q, k, v = (draw(rows, tokens, heads, width) for _ in "qkv")
        return [q, k, v, torch.rand(rows, tokens, heads, device=device)]

    small = rule(2, 150)
    small_decay = -torch.rand(2, 150, heads, device=device)
    reference, states = delta_rule_reference(*small, normalize_qk=True)
    decayed = delta_rule_reference(*small, small_decay, normalize_qk=True)[0]
    decay = -torch.rand(1, length, heads, device=device)
    forks = rule(64, 5)
    matrices = draw(8, heads, width, width)
    model = heads * width
    weight, conv_in = draw(model, 1, 4), draw(1, length, model)
    head, hidden = draw(args.vocab_size, model) / model**0.5, draw(length, model)
    targets = torch.randint(0, args.vocab_size, (length,), device=device)

    def check_shared() -> float:
        start = SharedState(states[:, 145])
        got, _ = delta_rule_shared(*(x[:, 145:] for x in small), None, start, normalize_qk=True)
        return apart(got, reference[:, 145:])

    def check_stats() -> float:
        expected = token_stats_reference(hidden[:99], head, targets[:99])[1]
        return apart(token_stats(hidden[:99], head, entropy=True).entropy, expected)

    tail = torch.zeros(1, 3, model, device=device)

    def by_triton(name: str, given: list[Tensor], few: list[Tensor], right: Tensor) -> Entry:
        def read(*x: Tensor) -> Tensor:
            return delta_rule(*x, normalize_qk=True, backend="triton").output

        few, given = ([x.bfloat16() for x in each] for each in (few, given))
        return Entry(name, given, read, lambda: apart(read(*few).float(), right), 0.03)

    own = []
    if torch.device(device).type == "cuda":
        own = [
            by_triton("delta_rule, triton", rule(1, length), small, reference),
            by_triton(
                "delta_rule, decay, triton",
                [*rule(1, length), decay],
                [*small, small_decay],
                decayed,
            ),
            *product_entries(forks, matrices, hidden, head, targets),
        ]
    return [
        *own,
        *row_entries(length, heads, width, draw),
        Entry(
            "delta_rule",
            rule(1, length),
            lambda *x: delta_rule(*x, normalize_qk=True).output,
            lambda: apart(delta_rule(*small, normalize_qk=True).output, reference),
        ),
        Entry(
            "delta_rule, decay",
            [*rule(1, length), decay],
            lambda *x: delta_rule(*x, normalize_qk=True).output,
            lambda: apart(delta_rule(*small, small_decay, normalize_qk=True).output, decayed),
        ),
        Entry(
            "delta_rule_shared, 8 x 8 forks of 5",
            forks,
            lambda *x: delta_rule_shared(*x, None, SharedState(matrices, 8), normalize_qk=True)[0],
            check_shared,
        ),
        Entry(
            "short_conv",
            [conv_in, weight],
            lambda x, w: short_conv(x, w),
            lambda: apart(
                short_conv(conv_in[:, :99], weight),
                short_conv_reference(conv_in[:, :99], weight, None, tail, True),
            ),
        ),
        Entry(
            "token_stats, log-probability",
            [hidden, head],
            lambda h, w: token_stats(h, w, targets).logprob,
            check_stats,
        ),
        Entry(
            "token_stats, entropy",
            [hidden, head],
            lambda h, w: token_stats(h, w, entropy=True).entropy,
            check_stats,
        ),
    ]


def product_entries(
    forks: list[Tensor], matrices: Tensor, hidden: Tensor, head: Tensor, targets: Tensor
) -> list[Entry]:
    """Forks and token statistics by Triton kernels, in bfloat16, against torch in float32."""

    def read(*x: Tensor, backend: Literal["torch", "triton"] = "triton") -> Tensor:
        state = SharedState(matrices, 8)
        return delta_rule_shared(*x, None, state, normalize_qk=True, backend=backend)[0]

    def entropy(h: Tensor, w: Tensor) -> Tensor:
        return token_stats(h, w, entropy=True, backend="triton").entropy

    def logprob(h: Tensor, w: Tensor) -> Tensor:
        return token_stats(h, w, targets, backend="triton").logprob

    def check_stats() -> float:
        few = hidden[:99].bfloat16(), head.bfloat16()
        expected = token_stats_reference(few[0].float(), few[1].float(), targets[:99])[1]
        return apart(entropy(*few), expected)

    rows = [x.bfloat16() for x in forks]
    return [
        Entry(
            "delta_rule_shared, 8 x 8 forks of 5, triton",
            rows,
            read,
            lambda: apart(read(*rows).float(), read(*(x.float() for x in rows), backend="torch")),
            0.03,
        ),
        *(
            Entry(f"token_stats, {name}, triton", [hidden.bfloat16(), head.bfloat16()], run,
                  check_stats, 0.03)
            for name, run in (("log-probability", logprob), ("entropy", entropy))
        ),
    ]  # fmt: skip


def row_entries(length: int, heads: int, width: int, draw: Callable[..., Tensor]) -> list[Entry]:
    """Those that work row by row, in the implementation that ``auto`` takes."""
    model = heads * width
    x, weight, gate = draw(length, heads, width), draw(width), draw(length, heads, width)
    rows, weights, up = draw(length, model), draw(model), draw(length, model)

    def check_norm() -> float:
        got = rms_norm(rows[:99], weights, 1e-6)
        return apart(got, gated_norm_reference(rows[:99], None, weights, 1e-6, False, 0.0))

    def check_gated() -> float:
        got = gated_norm(x[:99], gate[:99], weight, 1e-6)
        return apart(got, gated_norm_reference(x[:99], gate[:99], weight, 1e-6, False, 0.0))

    return [
        Entry("rms_norm", [rows, weights], lambda x, w: rms_norm(x, w, 1e-6), check_norm),
        Entry(
            "gated_norm",
            [x, gate, weight],
            lambda x, g, w: gated_norm(x, g, w, 1e-6),
            check_gated,
        ),
        Entry(
            "swiglu",
            [rows, up],
            swiglu,
            lambda: apart(swiglu(rows[:99], up[:99]), swiglu_reference(rows[:99], up[:99])),
        ),
    ]


def median_ms(work: Callable[[], object], repeats: int, device: str) -> float:
    """The median of ``repeats`` runs after one that is not timed, milliseconds."""
    times = []
    for _ in range(repeats + 1):
        start = now(torch.device(device))
        work()
        times.append(now(torch.device(device)) - start)
    return 1e3 * statistics.median(times[1:])


def main() -> None:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=8192, help="tokens")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=64, help="of a head")
    parser.add_argument("--vocab_size", type=int, default=32000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    print(f"{'':<44}{'forward ms':>12}{'both ms':>12}{'apart':>12}")
    for entry in entries(args):
        difference = entry.check()
        if not difference < entry.close:
            raise SystemExit(f"{entry.name} is {difference:.1e} from its reference; not timed")

        def forward(entry: Entry = entry) -> None:
            with torch.no_grad():
                entry.run(*entry.inputs)

        def both(entry: Entry = entry) -> None:
            leaves = [x.detach().requires_grad_() for x in entry.inputs]
            entry.run(*leaves).sum().backward()

        times = [median_ms(work, args.repeats, args.device) for work in (forward, both)]
        print(f"{entry.name:<44}{times[0]:>12.1f}{times[1]:>12.1f}{difference:>12.1e}")


if __name__ == "__main__":
    main()
