"""Sliding-window attention, with memory in proportion to tokens times window."""

from refine_kernels.window_attention.interface import WindowTrail, window_attention
from refine_kernels.window_attention.shared import SharedWindow

__all__ = ["SharedWindow", "WindowTrail", "window_attention"]
