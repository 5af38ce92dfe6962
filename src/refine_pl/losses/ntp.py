"""The next-token term of the loss: which tokens it counts."""

from __future__ import annotations

import torch
from torch import Tensor

from refine_pl.records import Batch


def ntp_targets(batch: Batch) -> Tensor:
    """``targets[b, t] = tokens[b, t + 1]`` if ``t + 1 < num_tokens[b]``, else -1: ``[B, T]`` int64.

    The head gives a negative target log-probability 0 and no gradient.
    """
    tokens = batch.tokens
    following = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    real = following < batch.num_tokens.to(tokens.device).unsqueeze(-1)
    return tokens.roll(-1, dims=1).masked_fill(~real, -1)


def count_ntp_tokens(num_tokens: Tensor) -> Tensor:
    """``sum of max(num_tokens - 1, 0)``: how many targets ``num_tokens [B]`` make, int64."""
    return (num_tokens.long() - 1).clamp_min(0).sum()
