"""The short causal depthwise convolution before a recurrence."""

from refine_kernels.short_conv.interface import conv_tail_at, conv_tails_at, short_conv
from refine_kernels.short_conv.three import three_short_convs

__all__ = ["conv_tail_at", "conv_tails_at", "short_conv", "three_short_convs"]
