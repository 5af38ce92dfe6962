"""Causal attention of whole rows, and their keys and values after any of their tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from refine_kernels.causal_attention.shared import SharedCache
from refine_kernels.records import check_shapes

# Queries that continue a state and share one mask: it has a column for every key.
MASKED_QUERIES = 1024


@dataclass(frozen=True, slots=True)
class AttentionTrail:
    """Keys and values of a pass, after those before it: the state at every position at once."""

    keys: Tensor  # [B, G, E, d]
    values: Tensor  # [B, G, E, d]
    before: Tensor | None  # [B] int64, tokens of each row before the pass; None: none

    def at(self, positions: Tensor) -> SharedCache:
        """What was read after ``positions [B, S]`` tokens of the pass, rows flattened."""
        end = positions if self.before is None else positions + self.before[:, None]
        return SharedCache(self.keys, self.values, end.flatten(), copies=positions.shape[1])


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, state: SharedCache | None = None
) -> tuple[Tensor, AttentionTrail]:
    """Each token attends to itself and all tokens before it.

    Args:
        q: queries ``[B, T, H, d]``, with their positions in them.
        k: keys ``[B, T, G, d]``, with their positions in them; each serves ``H / G`` heads of q
            that lie next to each other.
        v: values ``[B, T, G, d]``.
        state: what the rows continue; an empty text if left out.

    Returns:
        ``[B, T, H, d]``, and what gives the state after any number of the tokens.

    Raises:
        ValueError: shapes that do not fit.
    """
    batch, length, heads, width = q.shape
    served = k.shape[2]
    check_shapes(k=(k, (batch, length, served, width)), v=(v, (batch, length, served, width)))
    if heads % served:
        raise ValueError(f"{heads} heads of q cannot share {served} of k and v evenly")
    q = q.transpose(1, 2)
    with torch.autocast(q.device.type, enabled=False):
        if state is None:  # head by head in memory, as every later product reads them
            keys, values = (x.transpose(1, 2).contiguous() for x in (k, v))
            before = None
            output = _attend(q, keys, values, is_causal=True)
        else:
            keys, values, before = state.extended(k, v)
            output = _continue(q, keys, values, before)
    return output.transpose(1, 2), AttentionTrail(keys, values, before)


def _continue(q: Tensor, keys: Tensor, values: Tensor, before: Tensor) -> Tensor:
    """``q [B, H, T, d]`` after ``before [B]`` tokens, in blocks of queries."""
    length, size = q.shape[2], keys.shape[2]
    outputs = []
    for start in range(0, length, MASKED_QUERIES):
        stop = min(start + MASKED_QUERIES, length)
        seen = size - length + stop  # no query of this block sees more
        time = before[:, None] + torch.arange(start, stop, device=q.device)
        mask = torch.arange(seen, device=q.device) <= time[..., None]  # [B, Q, seen]
        block = q[:, :, start:stop], keys[:, :, :seen], values[:, :, :seen]
        outputs.append(_attend(*block, attn_mask=mask[:, None]))
    return torch.cat(outputs, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, **masks: Tensor | bool) -> Tensor:
    shared = q.shape[1] // k.shape[1]
    # On CUDA one fused kernel alone reads heads that are shared, in 16 bits and without a mask.
    # Without it all scores would lie in memory, so that the others get the heads one by one.
    if shared > 1 and q.is_cuda and ("attn_mask" in masks or q.dtype.itemsize > 2):
        k, v = (x.repeat_interleave(shared, 1) for x in (k, v))
        shared = 1
    return scaled_dot_product_attention(q, k, v, enable_gqa=shared > 1, **masks)  # type: ignore[arg-type]
