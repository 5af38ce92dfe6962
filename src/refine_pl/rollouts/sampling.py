"""Sampling by inverse transform: one uniform number decides one token."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_tokens(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw from ``softmax(logits)``, temperature 1, the whole vocabulary.

    With the same uniform numbers, logits that differ by rounding draw the same tokens (but for a
    number that falls between them), whatever the device, the batch, or the way they were computed.

    Args:
        logits: ``[..., vocab_size]``.
        uniform: ``[...]`` in [0, 1), float64.

    Returns:
        ``[...]`` int64.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    # Scaling by the last entry keeps rounding from leaving a gap after the last token.
    threshold = uniform.to(cumulative)[..., None] * cumulative[..., -1:]
    tokens = torch.searchsorted(cumulative, threshold, right=True)[..., 0]
    return tokens.clamp(max=logits.shape[-1] - 1)
