"""What is compiled ahead of time of the operations that work row by row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from refine_kernels.gated_norm.kernel_op import TritonGatedNorm
from refine_kernels.lact_update.choice import BY_TRITON
from refine_kernels.short_conv.kernel_op import TritonShortConv
from refine_kernels.short_conv.three import TritonThreeConvs
from refine_kernels.swiglu.kernel_op import TritonSwiGLU

TOKENS = 4096


def _draw(device: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device, requires_grad=True)


def _norm(width: int, gates: int | None, device: torch.device) -> None:
    """Float32 rows to bfloat16 without a gate, as between blocks; with one all in bfloat16."""
    kind = torch.float32 if gates is None else torch.bfloat16
    x, weight = _draw(device, TOKENS, width, dtype=kind), _draw(device, width, dtype=torch.float32)
    gate = None if gates is None else _draw(device, TOKENS, gates)
    TritonGatedNorm.apply(x, gate, weight, (1e-6, False, 0.0, torch.bfloat16)).sum().backward()


def _swiglu(device: torch.device) -> None:
    TritonSwiGLU.apply(_draw(device, TOKENS, 5632), _draw(device, TOKENS, 5632)).sum().backward()


def _conv(width: int, more: bool, device: torch.device) -> None:
    """``more``: with a bias and a tail."""
    x = _draw(device, 2, TOKENS, 2048)
    weight = _draw(device, 2048, 1, width, dtype=torch.float32)
    bias = _draw(device, 2048, dtype=torch.float32) if more else None
    tail = _draw(device, 2, width - 1, 2048) if more else None
    TritonShortConv.apply(x, weight, bias, tail, True).sum().backward()


def _three(values: int, tails: bool, device: torch.device) -> None:
    """Of q, k and v; ``values``: channels of v."""
    widths = (2048, 2048, values)
    inputs = [_draw(device, 2, TOKENS, width) for width in widths]
    weights = [_draw(device, width, 1, 4, dtype=torch.float32) for width in widths]
    before = [_draw(device, 2, 3, width) for width in widths] if tails else []
    made = TritonThreeConvs.apply(True, tails, *inputs, *weights, *before)
    sum(y.sum() for y in made).backward()


def _lact(per_channel: bool, device: torch.device) -> None:
    """One chunk, of a head of width 512; each function apart from the products."""
    n, h = TOKENS, 512
    ab, e, x02, x1 = (_draw(device, n, w) for w in (2 * h, h, 2 * h, h))
    rates = _draw(device, n, h if per_channel else 3, dtype=torch.float32)
    BY_TRITON.hidden_backward(ab, BY_TRITON.hidden(ab))
    BY_TRITON.written(ab, e, rates, per_channel)
    BY_TRITON.written_backward(ab, e, x02, x1, rates, per_channel)


ROW_CASES: dict[str, Callable[[torch.device], None]] = {
    **{f"rms_norm, {width}": partial(_norm, width, None) for width in (2048, 8192)},
    **{f"gated_norm, {width}": partial(_norm, width, width) for width in (128, 512)},
    "gated_norm, 512, a gate for each row": partial(_norm, 512, 1),
    "swiglu": _swiglu,
    "lact_update": partial(_lact, False),
    "lact_update, a rate for each channel": partial(_lact, True),
    "short_conv, 4 taps": partial(_conv, 4, False),
    "short_conv, 4 taps, bias and tail": partial(_conv, 4, True),
    "short_conv, three at once": partial(_three, 2048, False),
    "short_conv, three at once, v wider, tails": partial(_three, 4096, True),
}
