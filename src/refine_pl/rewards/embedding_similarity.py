"""How close the model's own hidden states of the rollout and of the true text are."""

from __future__ import annotations

import torch
from torch import Tensor

from refine_pl.records import Rollouts
from refine_pl.rewards.base import Reward


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """``a . b / (|a| |b|)`` over the last dimension, in [-1, 1], float64; 0 for a zero vector.

    Products are taken in float32 and summed in float64. Equal vectors, and vectors that differ by
    float32 rounding, give 1 when the result is rounded to float32.
    """
    a, b = a.float(), b.float()
    dot = (a * b).sum(dim=-1, dtype=torch.float64)
    squares = a.square().sum(dim=-1, dtype=torch.float64) * b.square().sum(
        dim=-1, dtype=torch.float64
    )
    # sqrt(x * x) is exactly x, while sqrt(x) * sqrt(x) is not.
    cos = dot / squares.where(squares > 0, 1.0).sqrt()
    return cos.clamp(-1, 1)


class EmbeddingSimilarity(Reward):
    """R = mean over the L tokens of cos(hidden of rollout token, hidden of target token).

    In [-1, 1]; the paper's mid-training reward. A rollout that equals its target scores 1.

    Args:
        weight: what the reward is multiplied by in the sum; 0 turns it off.
    """

    def score(self, rollouts: Rollouts) -> Tensor:
        """``[B, S, N]`` float32."""
        similarity = cosine(rollouts.hidden.detach(), rollouts.target_hidden.detach().unsqueeze(2))
        return similarity.mean(dim=-1).float()
