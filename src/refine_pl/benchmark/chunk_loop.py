"""The loop over chunks of a LaCT model against its matrix products alone."""

from __future__ import annotations

import torch
from torch import nn

from refine_kernels.lact_update.cost import Sizes, costs, element_wise, keep_memory
from refine_pl.backbones.lact import LaCTMixer


def chunk_loop(
    policy: nn.Module, batch: int, length: int, repeats: int, device: torch.device
) -> tuple[str, dict[str, float]] | None:
    """Time the loop of the policy's first LaCT layer, on random tokens.

    Returns:
        What was measured, in a line, and the ratios of loop to products by a name that says which;
        None if there is no such layer.
    """
    mixer = next((m for m in policy.modules() if isinstance(m, LaCTMixer)), None)
    if mixer is None:
        return None
    initial = mixer.initial()
    heads, inner, width = initial.w0.shape
    sizes = Sizes(
        length=length,
        heads=heads,
        width=width,
        chunk_size=mixer.rule.chunk_size,
        inner=inner,
        batch=batch,
        rates=mixer.lr_proj.out_features // heads,
        momentum=mixer.momentum_proj is not None,
        prenorm=mixer.rule.prenorm,
    )
    if device.type == "cpu":
        keep_memory()
    dtype = initial.w0.dtype
    how = element_wise(sizes, mixer.backend, device, dtype)
    found = costs(sizes, mixer.backend, repeats, device, dtype)
    described = (
        f"LaCT's chunk loop in one layer: {heads} heads of {width}, chunk {sizes.chunk_size:,}, "
        f"element-wise work {how}"
    )
    return described, {f"chunk loop / its products, {cost.name}": cost.ratio for cost in found}
