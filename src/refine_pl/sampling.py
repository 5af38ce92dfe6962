"""How a next token is picked: narrowed distributions, and sampling by inverse transform.

One uniform number decides one token.
"""

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


def narrowed(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Logits ``[M, V]`` of the narrowed distribution: float64, ``-inf`` where nothing is left.

    ``top_p`` keeps the token that crosses it, so at least one token is left, and is measured in
    what ``top_k`` leaves.
    """
    logits = logits.double() / temperature
    if top_k is None and top_p is None:
        return logits
    # Stable: of equal tokens the first ones stay.
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    dropped = torch.zeros_like(ordered, dtype=torch.bool)
    if top_k is not None:
        dropped[..., top_k:] = True
    if top_p is not None:
        probability = ordered.masked_fill(dropped, -torch.inf).softmax(-1)
        dropped |= probability.cumsum(-1) - probability >= top_p
    return logits.masked_fill(dropped.scatter(-1, index, dropped), -torch.inf)
