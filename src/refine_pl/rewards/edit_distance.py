"""How few tokens must be changed to get the true text."""

from __future__ import annotations

import torch
from torch import Tensor

from refine_pl.records import Rollouts
from refine_pl.rewards.base import Reward


def levenshtein(a: Tensor, b: Tensor) -> Tensor:
    """Fewest insertions, deletions and replacements that turn ``a [..., L]`` into ``b [..., K]``.

    Returns ``[...]`` int64; the leading dimensions broadcast.
    """
    column = torch.arange(b.shape[-1] + 1, device=b.device)
    # distance[..., j]: from the first i tokens of a to the first j tokens of b.
    distance = column
    for i in range(a.shape[-1]):
        replaced = distance[..., :-1] + (a[..., i : i + 1] != b).long()
        best = torch.minimum(distance[..., 1:] + 1, replaced)
        border = torch.full_like(best[..., :1], i + 1)
        # Insertions run along the row: d[j] = min over k <= j of best[k] + (j - k).
        distance = (torch.cat([border, best], dim=-1) - column).cummin(dim=-1).values + column
    return distance[..., -1]


class EditDistance(Reward):
    """R = 1 - Levenshtein(rollout tokens, target tokens) / L, in [0, 1].

    Unlike the exact match it forgives a rollout that is shifted by a token.

    Args:
        weight: what the reward is multiplied by in the sum; 0 turns it off.
    """

    def score(self, rollouts: Rollouts) -> Tensor:
        """``[B, S, N]`` float32."""
        distance = levenshtein(rollouts.tokens, rollouts.targets.unsqueeze(2))
        return 1 - distance.float() / rollouts.tokens.shape[-1]
