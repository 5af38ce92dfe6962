"""Statistics of next-token distributions from whole logits: what the blocked version must equal."""

from __future__ import annotations

import torch
from torch import Tensor


def token_stats_reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Log-probability (0 where the target is negative), entropy and correctness, each ``[M]``."""
    logits = hidden @ weight.t()
    logprobs = torch.log_softmax(logits, -1)
    picked = logprobs.gather(-1, targets.clamp(min=0)[:, None])[:, 0]
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    counted = targets >= 0
    return torch.where(counted, picked, 0), entropy, (logits.argmax(-1) == targets) & counted
