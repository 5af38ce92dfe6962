"""Causal attention by its definition, with a mask over all pairs.

o_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s   over   s <= t
"""

from __future__ import annotations

import torch
from torch import Tensor


def causal_attention_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``q [B, T, H, d]`` and ``k, v [B, T, G, d]``, each for ``H / G`` heads; ``[B, T, H, d]``."""
    served = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(served, 2), v.repeat_interleave(served, 2)
    time = torch.arange(q.shape[1], device=q.device)
    scores = torch.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(time[:, None] < time, -torch.inf)
    return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
