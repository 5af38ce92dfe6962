"""The output layer. It never holds a tensor of tokens x vocabulary elements."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine_kernels.token_stats import TokenStats, token_stats


class VocabHead(nn.Module):
    """Hidden states to statistics of the next token's distribution, in blocks of tokens.

    Args:
        hidden_size: model width ``D``.
        vocab_size: number of tokens.
    """

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        *,
        entropy: bool = False,
        correct: bool = False,
        logits: bool = False,
    ) -> TokenStats:
        """Statistics of the distributions that ``hidden`` predicts.

        Args:
            hidden: ``[M, D]``.
            targets: ``[M]`` int64; a negative target has log-probability 0 and no gradient.
            entropy: compute the entropies.
            correct: compute whether the target is the most likely token.
            logits: return the logits instead of statistics, for few rows only (sampling).

        Returns:
            ``logprob [M]`` and ``entropy [M]``, float32, nats; ``correct [M]`` bool; ``logits
            [M, vocab_size]`` float32. What was not asked for is empty.
        """
        if logits:
            return TokenStats(logits=F.linear(hidden, self.weight).float())
        return token_stats(hidden, self.weight, targets, entropy=entropy, correct=correct)
