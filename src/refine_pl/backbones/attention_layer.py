"""Softmax attention as a layer beside delta rules: its state is what it has read.

The keys and values of a prefix lie in memory once. The state after any number of its tokens is a
number, and forks share them. With a window the state holds the last tokens only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from refine_kernels.causal_attention import AttentionTrail, SharedCache, causal_attention
from refine_kernels.records import map_numbers
from refine_kernels.window_attention import SharedWindow, WindowTrail, window_attention
from refine_pl.backbones.base import LayerState, LayerTrail, TokenLayout
from refine_pl.backbones.rope import Rope, rotate
from refine_pl.backbones.stack import Mixer, RMSNorm

# Rows that continue a state by fewer tokens than this keep them beside it; with more of them the
# prefix is copied, unless rows share it.
SHORT = 16


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """What an attention layer is made from, under whatever names a model's options have it."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int  # each serves num_heads / num_kv_heads heads of q next to each other
    head_width: int
    rope: Rope | None  # None: no positions
    qkv_bias: bool = False
    out_bias: bool = False
    # q_proj has a gate beside each head's query: the output is multiplied by its sigmoid.
    gated: bool = False
    qk_norm: Literal["head", "all heads"] | None = None  # what a norm of q and of k runs over
    norm: Callable[[int, float], nn.Module] = RMSNorm
    norm_eps: float = 1e-6
    window: int | None = None  # tokens that each sees, itself included; None: all


@dataclass(frozen=True, slots=True)
class AttentionState(LayerState):
    """Keys and values of ``R`` rows."""

    seen: SharedCache | SharedWindow
    num_tokens: Tensor  # [R] int64, for the rotations of the next ones

    def for_graph(self, length: int) -> AttentionState | None:
        """None where the host lists which row has which place beside a prefix."""
        if isinstance(self.seen, SharedWindow):
            return replace(self, seen=self.seen.gathered())
        return self if self.seen.places is None else None

    def detach(self) -> AttentionState:
        """The same values without their history."""
        plain = map_numbers(Tensor.detach, self)
        if not isinstance(plain.seen, SharedWindow):
            return plain
        return replace(plain, seen=plain.seen.without_mailbox())


@dataclass(frozen=True, slots=True)
class AttentionLayerTrail(LayerTrail):
    """Keys and values of a pass."""

    seen: AttentionTrail | WindowTrail
    before: Tensor  # [B] int64, tokens of each row before the pass

    def at(self, positions: Tensor) -> AttentionState:
        """The state after ``positions [B, S]`` tokens, rows flattened to ``B * S``."""
        num_tokens = (self.before[:, None] + positions).flatten()
        return AttentionState(self.seen.at(positions), num_tokens)


class AttentionMixer(Mixer):
    """The mixer of one layer of softmax attention."""

    kind = "attention"
    has_fixed_state = False

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.head_width, self.rope = shape.head_width, shape.rope
        self.window, self.gated = shape.window, shape.gated
        self.served = shape.num_heads // shape.num_kv_heads
        self.norm_heads = shape.qk_norm == "head"
        q_size, kv_size = (n * shape.head_width for n in (shape.num_heads, shape.num_kv_heads))
        size, bias = shape.hidden_size, shape.qkv_bias
        self.q_proj = nn.Linear(size, 2 * q_size if shape.gated else q_size, bias=bias)
        self.k_proj = nn.Linear(size, kv_size, bias=bias)
        self.v_proj = nn.Linear(size, kv_size, bias=bias)
        self.o_proj = nn.Linear(q_size, size, bias=shape.out_bias)
        self.q_norm = self.k_norm = None
        if shape.qk_norm is not None:
            widths = (shape.head_width,) * 2 if self.norm_heads else (q_size, kv_size)
            self.q_norm, self.k_norm = (shape.norm(width, shape.norm_eps) for width in widths)

    def forward(
        self, x: Tensor, layout: TokenLayout, state: LayerState | None, keep_trail: bool
    ) -> tuple[Tensor, AttentionState, AttentionLayerTrail | None]:
        """Mix tokens; see :class:`Mixer`."""
        assert state is None or isinstance(state, AttentionState)
        before = torch.zeros_like(layout.num_tokens) if state is None else state.num_tokens
        q, gate = self.q_proj(x), None
        if self.gated:
            q, gate = q.unflatten(-1, (-1, 2 * self.head_width)).chunk(2, -1)
            q, gate = q.flatten(-2), gate.flatten(-2)
        main, fork = layout.split(self._heads(x, q, layout.numbers(before)))
        plain = not keep_trail and layout.forks is None and layout.mask is None
        trail = None
        with torch.autocast(x.device.type, enabled=False):
            if state is not None and plain and (layout.length < SHORT or state.seen.copies > 1):
                output, seen = state.seen.attend(*main)
                after = AttentionState(seen, before + layout.num_tokens)
            else:
                output, kept = self._read(main, None if state is None else state.seen)
                trail = AttentionLayerTrail(kept, before)
                after = trail.at(layout.ends)
                if isinstance(after.seen, SharedWindow):  # it holds no more than its rows need
                    after = AttentionState(after.seen.fold(), after.num_tokens)
            fork_output = None
            if layout.forks is not None and trail is not None and fork is not None:
                forked = trail.at(layout.forks.positions).fork(layout.forks.tokens.shape[2])
                fork_output, _ = forked.seen.attend(*fork)
        y = layout.join(output, fork_output).flatten(-2)
        if gate is not None:
            y = y * gate.sigmoid()
        return self.o_proj(y), after, trail if keep_trail else None

    def _heads(self, x: Tensor, q: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``x [M, D]`` and its projection to q as heads ``[M, H, d]`` with their positions."""
        k, v = self.k_proj(x), self.v_proj(x).unflatten(-1, (-1, self.head_width))
        heads = [self._normed(q, self.q_norm), self._normed(k, self.k_norm)]
        if self.rope is not None:
            table = self.rope.rotations(numbers, torch.promote_types(x.dtype, torch.float32))
            heads = [rotate(each, table) for each in heads]
        q, k = (each.to(v.dtype) for each in heads)  # a norm may have made them float32
        if self.window is not None and self.served > 1:
            k, v = (each.repeat_interleave(self.served, -2) for each in (k, v))
        return q, k, v

    def _normed(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        """``x [M, H * d]`` as heads ``[M, H, d]``, normed before or after."""
        if norm is not None and not self.norm_heads:
            x = norm(x)
        heads = x.unflatten(-1, (-1, self.head_width))
        return norm(heads) if norm is not None and self.norm_heads else heads

    def _read(
        self, tokens: tuple[Tensor, Tensor, Tensor], seen: SharedCache | SharedWindow | None
    ) -> tuple[Tensor, AttentionTrail | WindowTrail]:
        """Whole rows, ``[B, T, H, d]``."""
        if self.window is None:
            assert not isinstance(seen, SharedWindow)
            return causal_attention(*tokens, seen)
        assert not isinstance(seen, SharedCache)
        return window_attention(*tokens, self.window, seen)
