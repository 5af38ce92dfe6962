"""Sliding-window attention by its definition, with a mask over all pairs.

o_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s   over   t - window < s <= t
"""

from __future__ import annotations

import torch
from torch import Tensor


def window_attention_reference(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """``q, k, v [B, T, H, d]`` to ``[B, T, H, d]``."""
    length = q.shape[1]
    time = torch.arange(length, device=q.device)
    distance = time[:, None] - time
    scores = torch.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5
    scores = scores.masked_fill((distance < 0) | (distance >= window), -torch.inf)
    return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
