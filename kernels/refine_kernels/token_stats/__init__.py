"""Statistics of next-token distributions from hidden states and the head's weight."""

from refine_kernels.token_stats.interface import TokenStats, token_stats

__all__ = ["TokenStats", "token_stats"]
