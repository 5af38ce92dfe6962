"""Sliding-window attention of whole rows in blocks of queries.

A block of ``Q`` queries reads the ``Q + window - 1`` keys that any of them can see. The backward
pass does a block again instead of keeping what was between: both directions hold the scores of one
block at a time. What continued the rows (``shared.py``) has left its part of the gradients of keys
and values in a mailbox.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from refine_kernels.compact import Mailbox

# Fewer queries read fewer keys that they do not see; more start fewer operations.
MIN_BLOCK, MAX_BLOCK = 64, 1024


class _Block(NamedTuple):
    queries: slice
    keys: slice
    mask: Tensor  # [Q, K] or [B, 1, Q, K] bool


def _blocks(q: Tensor, k: Tensor, before: Tensor | None, window: int) -> Iterator[_Block]:
    """The blocks of ``q [B, T, H, d]`` and ``k [B, lead + T, H, d]``."""
    length, lead = q.shape[1], k.shape[1] - q.shape[1]
    size = min(max(window // 2, MIN_BLOCK), MAX_BLOCK)
    for start in range(0, length, size):
        stop = min(start + size, length)
        first = max(start + lead - window + 1, 0)
        time = torch.arange(start + lead, stop + lead, device=q.device)[:, None]
        key = torch.arange(first, stop + lead, device=q.device)
        mask = (key <= time) & (key > time - window)
        if before is not None and first < lead:
            real = key >= lead - before[:, None]  # [B, K]
            mask = mask & real[:, None, None]
        yield _Block(slice(start, stop), slice(first, stop + lead), mask)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """``q [B, Q, H, d]``, ``k, v [B, K, H, d]`` to ``[B, Q, H, d]``."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


class BlockedWindowAttention(torch.autograd.Function):
    """Forward and backward over blocks of queries."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        before: Tensor | None,
        window: int,
        mailbox: Mailbox,
    ) -> tuple[Tensor, Tensor]:
        """``[B, T, H, d]``, and a handle; shapes as in ``interface.window_attention``."""
        output = torch.empty_like(q)
        for block in _blocks(q, k, before, window):
            output[:, block.queries] = _attend(
                q[:, block.queries], k[:, block.keys], v[:, block.keys], block.mask
            )
        ctx.save_for_backward(q, k, v, before)
        ctx.window, ctx.mailbox = window, mailbox
        ctx.set_materialize_grads(False)
        return output, q.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_output: Tensor | None, handle: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v."""
        letters = ctx.mailbox.take(handle)
        q, k, v, before = ctx.saved_tensors
        d_q = None if d_output is None else torch.empty_like(q)
        d_k, d_v = torch.zeros_like(k), torch.zeros_like(v)
        blocks = () if d_output is None else _blocks(q, k, before, ctx.window)
        for block in blocks:
            assert d_output is not None
            assert d_q is not None
            queries, keys, values = (
                x.detach().requires_grad_()
                for x in (q[:, block.queries], k[:, block.keys], v[:, block.keys])
            )
            with torch.enable_grad(), torch.autocast(q.device.type, enabled=False):
                output = _attend(queries, keys, values, block.mask)
            found = torch.autograd.grad(output, (queries, keys, values), d_output[:, block.queries])
            d_q[:, block.queries] = found[0]
            d_k[:, block.keys] += found[1]
            d_v[:, block.keys] += found[2]
        with torch.autocast(q.device.type, enabled=False):
            for letter in letters:
                letter.add_to((d_k, d_v), (k, v))
        return d_q, d_k, d_v, None, None, None
