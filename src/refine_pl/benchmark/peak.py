"""How fast this machine multiplies, and how many operations the products of an update are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from refine_kernels.clock import now

_SIDES = {"cuda": 8192, "cpu": 1024}
_REPEATS = 10


@dataclass(frozen=True, slots=True)
class Peak:
    """What one large matrix product reaches."""

    side: int  # both matrices are [side, side]
    dtype: str
    flop_per_s: float

    def share(self, flop: int, seconds: float) -> float:
        """Which part of it ``flop`` operations in ``seconds`` are."""
        return flop / seconds / self.flop_per_s

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def describe(self) -> str:
        """In a line."""
        speed, unit = self.flop_per_s / 1e12, "TFLOP/s"
        if speed < 1:
            speed, unit = 1000 * speed, "GFLOP/s"
        size = f"{self.side:,} x {self.side:,}"
        return f"peak: a product of {size} matrices in {self.dtype} reaches {speed:,.0f} {unit}"


def measure_peak(
    device: torch.device, trained: torch.dtype, side: int | None = None, repeats: int = _REPEATS
) -> Peak:
    """Multiply two large matrices, again and again.

    Args:
        device: where.
        trained: type of the products on a CPU; on CUDA they are in bfloat16.
        side: of the matrices; by default one for the kind of device.
        repeats: of which the fastest counts, after one that does not.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else trained
    side = _SIDES[device.type] if side is None else side
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in "ab")
    out = torch.empty_like(a)
    times = []
    for _ in range(repeats + 1):
        start = now(device)
        torch.mm(a, b, out=out)
        times.append(now(device) - start)
    name = str(dtype).removeprefix("torch.")
    return Peak(side, name, 2 * side**3 / min(times[1:]))


class Products(TorchDispatchMode):
    """Counts the floating-point operations of matrix products inside the ``with`` block.

    By torch's own formulas (``torch.utils.flop_counter``), and one for triangular solves. What is
    not a product is left out, and so are products inside Triton kernels, which are no operations of
    torch. Attention counts as if nothing were masked.

    Attributes:
        flop: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        formula = PRODUCT_FORMULAS.get(func.overloadpacket)
        if formula is not None:
            given = {name: x for name, x in kwargs.items() if name != "out"}
            self.flop += formula(*args, **given, out_val=made)
        return made


def _solve(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """Of triangles ``[..., n, n]`` with ``[..., n, m]``: half of a product's."""
    return a[..., 0].numel() * a.shape[-1] * b.shape[-1]


def _attention(formula: Callable[..., int], first: int, *args: Any, **options: Any) -> int:
    return formula(*_with_all_heads(args, first), **options)


def _with_all_heads(args: tuple, first: int) -> tuple:
    """Arguments of attention with as many heads of keys and values as of queries.

    Heads may share them; torch 2.11 does not count such products.

    Args:
        args: of a kernel.
        first: where the queries are; keys and values follow, ``[B, H, T, D]`` each.
    """
    queries, *others = args[first : first + 3]
    shapes = [(x.shape[0], queries.shape[1], *x.shape[2:]) for x in others]
    full = (torch.empty(shape, dtype=queries.dtype, device="meta") for shape in shapes)
    return (*args[: first + 1], *full, *args[first + 3 :])


_aten = torch.ops.aten
_ATTENTION = ("efficient", "flash", "cudnn")


def _formulas() -> dict[Any, Any]:
    # Not those of convolutions: groups are ignored there.
    found = {op: flop_registry[op] for op in (_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm)}
    found |= {_aten.addmm_: found[_aten.addmm], _aten.baddbmm_: found[_aten.baddbmm]}
    for direction in ("", "_backward"):
        for name in _ATTENTION:
            op = getattr(_aten, f"_scaled_dot_product_{name}_attention{direction}")
            found[op] = partial(_attention, flop_registry[op], int(bool(direction)))
        on_cpu = getattr(_aten, f"_scaled_dot_product_flash_attention_for_cpu{direction}")
        found[on_cpu] = found[op]
    return found | {_aten.linalg_solve_triangular: _solve}


PRODUCT_FORMULAS = _formulas()
"""Operation to its count of floating-point operations, from its arguments and ``out_val``."""
