"""Softmax attention over everything before, and its keys and values shared between forks."""

from refine_kernels.causal_attention.interface import AttentionTrail, causal_attention
from refine_kernels.causal_attention.shared import SharedCache

__all__ = ["AttentionTrail", "SharedCache", "causal_attention"]
