"""Sliding-window attention of whole rows, and the window after any of their tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from refine_kernels.compact import Mailbox
from refine_kernels.records import check_shapes
from refine_kernels.window_attention.blocked import BlockedWindowAttention
from refine_kernels.window_attention.prefixes import Source, Windows
from refine_kernels.window_attention.shared import SharedWindow


@dataclass(frozen=True, slots=True)
class WindowTrail:
    """Keys and values of a pass, and of the window before it."""

    source: Source  # of [B, lead + T] tokens
    lead: int
    before: Tensor | None  # [B] real ones among the lead; None: all of them
    window: int

    def at(self, positions: Tensor) -> SharedWindow:
        """The windows after ``positions [B, S]`` tokens of the pass, rows flattened."""
        row = torch.arange(positions.shape[0], device=positions.device)[:, None]
        before = positions + (self.lead if self.before is None else self.before[:, None])
        windows = Windows(
            row.expand_as(positions).flatten(),
            (positions + self.lead).flatten(),
            before.clamp(max=self.window - 1).flatten(),
            self.window,
        )
        return SharedWindow(self.source, windows)


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, state: SharedWindow | None = None
) -> tuple[Tensor, WindowTrail]:
    """Each token attends to itself and the ``window - 1`` tokens before it.

    Args:
        q: queries ``[B, T, H, d]``, with their positions in them.
        k: keys ``[B, T, H, d]``, with their positions in them.
        v: values ``[B, T, H, d]``.
        window: tokens that each sees, itself included.
        state: what the rows continue; an empty text if left out.

    Returns:
        ``[B, T, H, d]``, and what gives the window after any number of its tokens.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_shapes(k=(k, tuple(q.shape)), v=(v, tuple(q.shape)))
    if window < 1:
        raise ValueError(f"window {window}: each token sees at least itself")
    lead, before = 0, None
    if state is not None:
        rows = state.fold()
        keys, values, before = rows.source.keys, rows.source.values, rows.windows.count
        lead = keys.shape[1]
        k = torch.cat([keys.to(k.dtype), k], 1)
        v = torch.cat([values.to(v.dtype), v], 1)
    mailbox = Mailbox()
    with torch.autocast(q.device.type, enabled=False):
        output, handle = BlockedWindowAttention.apply(q, k, v, before, window, mailbox)
    source = Source(k.detach(), v.detach(), handle, mailbox)
    return output, WindowTrail(source, lead, before, window)
