"""What frozen weights need not have: copies of their own, and 32 bits where 16 are read."""

from __future__ import annotations

import copy

import torch
from torch import nn

from refine_pl.backbones import FastWeightLM


def frozen_copy(policy: FastWeightLM) -> FastWeightLM:
    """The policy as it is now, without gradients; what it never trains is shared, not copied.

    Of a model with an adapter so only the adapter is copied.
    """
    shared = {id(p): p for p in policy.parameters() if not p.requires_grad}
    return copy.deepcopy(policy, shared).requires_grad_(False)


@torch.no_grad()
def keep_frozen_in_16_bits(policy: FastWeightLM) -> None:
    """Store frozen matrices as the bfloat16 that an autocast would make of them in every pass.

    Results under such an autocast do not change by a bit. Norms, decays, biases and embeddings are
    read in 32 bits there, and stay.
    """
    matrices = [m.weight for m in policy.modules() if isinstance(m, nn.Linear)]
    if not getattr(policy, "tied", False):
        matrices.append(policy.head.weight)
    for weight in matrices:
        if not weight.requires_grad and weight.dtype == torch.float32:
            weight.data = weight.data.bfloat16()
