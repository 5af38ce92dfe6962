"""The short convolution over blocks of tokens, so that its taps read the processor's cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK_TOKENS = 1024


def _before_activation(padded: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
    """``[B, n + W - 1, D]`` to ``[B, n, D]``; ``taps [W, D]``."""
    width = taps.shape[0]
    length = padded.shape[1] - width + 1
    y = padded[:, :length] * taps[0]
    for j in range(1, width):
        y.addcmul_(padded[:, j : j + length], taps[j])
    return y if bias is None else y.add_(bias)


class BlockedShortConv(torch.autograd.Function):
    """Forward and backward; the value before the activation is computed again in the backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor, silu: bool
    ) -> Tensor:
        """``y [B, T, D]``."""
        taps = weight[:, 0].t().contiguous()
        y = torch.empty_like(x)
        for start, padded in _blocks(x, tail):
            block = _before_activation(padded, taps, bias)
            if silu:
                torch.nn.functional.silu(block, inplace=True)
            y[:, start : start + block.shape[1]] = block
        ctx.save_for_backward(x, weight, bias, tail)
        ctx.silu = silu
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias and tail."""
        (d_y,) = grads
        x, weight, bias, tail = ctx.saved_tensors
        taps = weight[:, 0].t().contiguous()
        width = taps.shape[0]
        d_padded = x.new_zeros(x.shape[0], x.shape[1] + width - 1, x.shape[2])
        d_taps = torch.zeros_like(taps)
        d_bias = None if bias is None else torch.zeros_like(bias)
        for start, padded in _blocks(x, tail):
            length = padded.shape[1] - width + 1
            d_block = d_y[:, start : start + length]
            if ctx.silu:
                before = _before_activation(padded, taps, bias)
                d_block = torch.ops.aten.silu_backward(d_block, before)
            for j in range(width):
                d_padded[:, start + j : start + j + length].addcmul_(d_block, taps[j])
                d_taps[j] += (d_block * padded[:, j : j + length]).sum((0, 1))
            if d_bias is not None:
                d_bias += d_block.sum((0, 1))
        d_tail, d_x = d_padded[:, : width - 1], d_padded[:, width - 1 :]
        return d_x, d_taps.t().unsqueeze(1), d_bias, d_tail, None


def _blocks(x: Tensor, tail: Tensor) -> list[tuple[int, Tensor]]:
    """Blocks of tokens, each with the ``W - 1`` inputs before it."""
    before = tail.shape[1]
    blocks = []
    for start in range(0, x.shape[1], BLOCK_TOKENS):
        stop = min(start + BLOCK_TOKENS, x.shape[1])
        missing = max(before - start, 0)
        block = x[:, max(start - before, 0) : stop]
        if missing:
            block = torch.cat([tail[:, before - missing :], block], 1)
        blocks.append((start, block))
    return blocks
