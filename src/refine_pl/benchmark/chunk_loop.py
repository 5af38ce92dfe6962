"""The loop over chunks of a LaCT model against its matrix products alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from refine_kernels.lact_update.cost import Cost, Sizes, costs, is_compiled, keep_memory
from refine_pl.backbones.lact_mixer import LaCTMixer


@dataclass(frozen=True, slots=True)
class ChunkLoop:
    """What was measured, and of what."""

    sizes: Sizes
    compiled: bool  # the element-wise work
    costs: list[Cost]

    def ratios(self) -> dict[str, float]:
        """Loop to products, by a name that says which."""
        return {f"chunk loop / its products, {cost.name}": cost.ratio for cost in self.costs}

    def describe(self) -> str:
        """What was measured, in one line."""
        sizes = self.sizes
        return (
            f"LaCT's chunk loop in one layer: {sizes.heads} heads of {sizes.width}, chunk "
            f"{sizes.chunk_size:,}, element-wise work {'' if self.compiled else 'un'}compiled"
        )


def chunk_loop(
    policy: nn.Module, batch: int, length: int, repeats: int, device: torch.device
) -> ChunkLoop | None:
    """Time the loop of the policy's first LaCT layer, on random tokens; None: it has none."""
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
    compiled = is_compiled(sizes, mixer.backend, device, dtype)
    return ChunkLoop(sizes, compiled, costs(sizes, mixer.backend, repeats, device, dtype))
