"""What is compiled ahead of time: each operation's calls at the sizes of real models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from refine_kernels.delta_rule.kernel_trail import delta_rule_triton
from refine_kernels.row_cases import ROW_CASES

LENGTH = 4096


def _delta_rule(decay: bool, widths: tuple[int, int], device: torch.device) -> None:
    """Forward and backward, with a coarse trail and with positions given."""
    heads, (keys, values) = 4, widths

    def draw(width: int) -> Tensor:
        x = torch.empty(1, LENGTH, heads, width, dtype=torch.bfloat16, device=device)
        return x.requires_grad_()

    q, k, v = draw(keys), draw(keys), draw(values)
    beta = torch.empty(1, LENGTH, heads, device=device, requires_grad=True)
    g = torch.empty(1, LENGTH, heads, device=device, requires_grad=True) if decay else None
    initial = torch.empty(1, heads, keys, values, device=device)
    positions = torch.empty(1, 8, dtype=torch.int64, device=device)
    for keep in (True, False):
        output, state, trail = delta_rule_triton(
            q, k, v, beta, g, initial, keys**-0.5, True, keep, 64, positions
        )
        assert trail is not None
        (output.sum() + state.sum() + trail.at(positions).sum()).backward()


CASES: dict[str, Callable[[torch.device], None]] = {
    f"delta_rule{', decay' if decay else ''}, {keys} x {values}": partial(
        _delta_rule, decay, (keys, values)
    )
    for decay in (False, True)
    for keys, values in ((64, 64), (128, 128), *(((256, 512),) if decay else ()))
} | ROW_CASES

# Bytes that a kernel may spill, stores and loads, with Triton 3.9. The last kernel of the backward
# pass holds two gradients of [C, K] in float32 beside the keys that they are multiplied with. On
# sm_90 the inverse of 64 x 64 in float32 takes all registers of four warps, and more of eight.
KNOWN_SPILLS = {
    ("queries_keys_back", "sm_80"): 320,
    ("queries_keys_back", "sm_100"): 20,
    ("prepare", "sm_90"): 8,
}
