"""Sizes of the blocks that Triton programs work on."""

from __future__ import annotations


def power_of_two(width: int, least: int = 1) -> int:
    """The smallest power of two that is neither below ``width`` nor below ``least``."""
    return max(least, 1 << max(width - 1, 0).bit_length())
