"""The second half of a gradient of weights: each program has left a row of sums; they are added.

In a fixed order, so that the same call gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refine_kernels.launching import launch

# Columns and rows that a program takes at once.
_BLOCK, _ROWS = 64, 32


@triton.jit(do_not_specialize=["P"])
def column_sums(partial, total, P, C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """``total [C]`` of ``partial [P, C]`` float32."""
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    found = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, P, ROWS):
        at = (first + row).to(tl.int64)
        inside = (at < P)[:, None] & (column < C)[None, :]
        found += tl.load(partial + at[:, None] * C + column[None, :], mask=inside, other=0.0)
    tl.store(total + column, tl.sum(found, 0).to(total.dtype.element_ty), mask=column < C)


def sum_columns(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """Of ``partial [P, C]`` float32 the sums ``[C]`` in ``dtype``: one launch."""
    rows, columns = partial.shape
    total = partial.new_empty(columns, dtype=dtype)
    launch(
        column_sums, (-(-columns // _BLOCK),), {"partial": partial, "total": total, "P": rows},
        {"C": columns, "BLOCK": _BLOCK, "ROWS": _ROWS}, {"num_warps": 4, "num_stages": 2},
    )  # fmt: skip
    return total
