"""LaCT (arXiv 2505.23884): window attention beside fast weights that large chunks update.

f_W(x) = W1 (silu(W0 x) * (W2 x));  a chunk is read with the W from before it, then
W <- rescale(W + direction that increases the sum of rate_i <f_W(k_i), v_i> over the chunk)

out = o_proj(attention(q, k, v) + silu(scale) norm(f_W(fast q)))
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine_kernels.backends import CompiledBackend
from refine_kernels.lact_update import (
    FastTokens,
    FastTrail,
    FastWeights,
    Precision,
    SharedFastState,
    UnchangingState,
    lact_update,
    row_norms,
)
from refine_kernels.window_attention import SharedWindow, WindowTrail, window_attention
from refine_pl.backbones.base import LayerState, LayerTrail, TokenLayout
from refine_pl.backbones.lact_options import LaCTOptions
from refine_pl.backbones.rope import rotate, rotations
from refine_pl.backbones.stack import Mixer, RMSNorm, StackedLM

# Rows that continue a state by fewer tokens than this keep them beside the state.
SHORT = 16

_NORM_EPS = 1e-5  # of the mixer's own norms, whatever the model's
_FRESH_RATE = 1e-3


@dataclass(frozen=True, slots=True)
class LaCTState(LayerState):
    """The state of one layer for ``R`` rows."""

    fast: SharedFastState | UnchangingState
    seen: SharedWindow
    num_tokens: Tensor  # [R] int64, for the rotations of the next ones

    def for_graph(self, length: int) -> LaCTState | None:
        """None where a chunk becomes full, which the host counts."""
        assert isinstance(self.fast, SharedFastState)
        fast = self.fast.unchanging(length)
        return None if fast is None else replace(self, fast=fast, seen=self.seen.gathered())


@dataclass(frozen=True, slots=True)
class LaCTTrail(LayerTrail):
    """What one layer keeps of a pass."""

    fast: FastTrail
    seen: WindowTrail
    before: Tensor  # [B] int64, tokens of each row before the pass

    def at(self, positions: Tensor) -> LaCTState:
        """The state after ``positions [B, S]`` tokens, rows flattened to ``B * S``."""
        num_tokens = (self.before[:, None] + positions).flatten()
        return LaCTState(self.fast.at(positions), self.seen.at(positions), num_tokens)


class LowRankFastWeight(nn.Module):
    """An initial fast weight ``[H, rows, columns]`` of few parameters: ``left @ right + I / 2``.

    ``rank`` is the number of columns of left; ``gain`` scales the fresh parameters.
    """

    def __init__(self, num_heads: int, rows: int, columns: int, rank: int, gain: float) -> None:
        super().__init__()
        self.w_left = nn.Parameter(torch.empty(num_heads, rows, rank))
        self.w_right = nn.Parameter(torch.empty(num_heads, rank, columns))
        nn.init.normal_(self.w_left, std=gain / math.sqrt(rank))
        nn.init.normal_(self.w_right, std=gain / math.sqrt(columns))

    def forward(self) -> Tensor:
        """``[H, rows, columns]``."""
        product = self.w_left @ self.w_right
        rows, columns = product.shape[-2:]
        return product + 0.5 * torch.eye(rows, columns, dtype=product.dtype, device=product.device)


class _Projected(NamedTuple):
    """What a token brings, ``[rows, tokens, heads, ...]``."""

    q: Tensor
    k: Tensor
    v: Tensor
    fast_q: Tensor
    fast: FastTokens


class LaCTMixer(Mixer):
    """The mixer of one LaCT layer."""

    kind = "lact"

    def __init__(self, options: LaCTOptions) -> None:
        super().__init__()
        hidden_size, fast_heads = options.hidden_size, options.num_lact_heads
        self.backend: CompiledBackend = options.backend
        self.precision: Precision = options.precision
        self.num_fast_heads, self.head_width = fast_heads, options.head_width
        self.window, self.rule, self.theta = options.window_size, options.rule, options.rope_theta
        self.silu_qk = options.qkv_silu
        self.silu_v = options.qkv_silu and not options.no_v_silu
        self.rotate_fast = not options.ttt_nope
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=options.qkv_bias)
        self.q_norm = RMSNorm(hidden_size, _NORM_EPS) if options.attn_qk_norm else None
        self.k_norm = RMSNorm(hidden_size, _NORM_EPS) if options.attn_qk_norm else None
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.w0, self.w2 = _initial(options), _initial(options)
        self.w1 = _plain(fast_heads, options.fast_width, options.inner_width)
        self.lr_proj = nn.Linear(hidden_size, 3 * options.lr_dim * fast_heads)
        self.qk_scale = nn.Parameter(torch.ones(hidden_size, 2))
        self.qk_offset = nn.Parameter(torch.zeros(hidden_size, 2))
        self.ttt_norm = RMSNorm(options.fast_width, _NORM_EPS, for_products=True)
        self.ttt_scale_proj = (
            nn.Linear(hidden_size, fast_heads) if options.learnable_ttt_scale else None
        )
        self.momentum_proj = (
            nn.Sequential(nn.Linear(hidden_size, fast_heads), nn.Sigmoid())
            if options.use_momentum
            else None
        )

    def initial(self) -> FastWeights:
        """The fast weights of an empty text, ``[H, ...]``, float32 or float64."""
        w0, w2 = (w if isinstance(w, nn.Parameter) else w() for w in (self.w0, self.w2))
        weights = FastWeights(w0, self.w1, w2)
        return weights.map(lambda w: w.to(torch.promote_types(w.dtype, torch.float32)))

    def forward(
        self, x: Tensor, layout: TokenLayout, state: LayerState | None, keep_trail: bool
    ) -> tuple[Tensor, LaCTState, LaCTTrail | None]:
        """Mix tokens; see :class:`Mixer`."""
        assert state is None or isinstance(state, LaCTState)
        before = torch.zeros_like(layout.num_tokens) if state is None else state.num_tokens
        main, fork = self._project(x, layout, before, keep_trail)
        initial = self.initial()
        plain = not keep_trail and layout.forks is None and layout.mask is None
        trail = None
        if state is not None and plain and layout.length < SHORT:
            seen, output, after = self._continue(main, state, initial)
        else:
            # The trail outlives this forward, and sharded weights are whole only inside of it.
            initial = initial.map(torch.clone) if state is None else initial
            seen, seen_trail = window_attention(
                main.q, main.k, main.v, self.window, None if state is None else state.seen
            )
            before_fast = None if state is None else state.fast
            assert not isinstance(before_fast, UnchangingState)
            how = (self.backend, self.precision)
            result = lact_update(main.fast_q, main.fast, initial, self.rule, before_fast, *how)
            output = result.output
            if len(result.trail.entering.chunks) == 1:
                output = output + _nothing(main.fast)
            trail = LaCTTrail(result.trail, seen_trail, before)
            # It holds no more than its rows need.
            fast, window = result.trail.at(layout.ends).fold(), seen_trail.at(layout.ends).fold()
            after = LaCTState(fast, window, before + layout.num_tokens)
        fork_seen = fork_output = None
        if layout.forks is not None and trail is not None and fork is not None:
            forked = trail.at(layout.forks.positions).fork(layout.forks.tokens.shape[2])
            fork_seen, fork_output, _ = self._continue(fork, forked, initial)
        y = self._leave(layout.join(seen, fork_seen), layout.join(output, fork_output), x)
        return y, after, trail if keep_trail else None

    def _continue(
        self, tokens: _Projected, state: LaCTState, initial: FastWeights
    ) -> tuple[Tensor, Tensor, LaCTState]:
        """Both branches over a few tokens of rows that may share their prefixes."""
        with torch.autocast(tokens.q.device.type, enabled=False):
            seen, window = state.seen.attend(tokens.q, tokens.k, tokens.v)
            norms = row_norms(initial)
            output, fast = state.fast.read(tokens.fast_q, tokens.fast, norms, self.rule)
        return seen, output, LaCTState(fast, window, state.num_tokens + tokens.q.shape[1])

    def _project(
        self, x: Tensor, layout: TokenLayout, before: Tensor, kept: bool = False
    ) -> tuple[_Projected, _Projected | None]:
        """Sequences and forks, projected at once; ``before [B]`` tokens precede them.

        Keys and values will be ``kept``, or not.
        """
        q, k, v = self.qkv(x).chunk(3, -1)
        if kept and not torch.is_grad_enabled():
            v = v.contiguous()  # a view would keep q and k as well
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        dtype = torch.promote_types(x.dtype, torch.float32)
        table = rotations(layout.numbers(before), self.head_width, self.theta, dtype)
        scale, offset = self.qk_scale.to(q.dtype), self.qk_offset.to(q.dtype)
        fast_q = self._enter_fast(q * scale[:, 0] + offset[:, 0], table)
        fast_k = self._enter_fast(k * scale[:, 1] + offset[:, 1], table)
        fast_v = F.silu(v) if self.silu_v else v
        rates = self.lr_proj(x).to(dtype) + math.log(math.expm1(_FRESH_RATE))
        momentum = None if self.momentum_proj is None else self.momentum_proj(x)
        heads, fast_heads = (-1, self.head_width), (self.num_fast_heads, -1)
        fast_v = fast_v.unflatten(-1, fast_heads)
        rates = F.softplus(rates).unflatten(-1, fast_heads)
        tokens = _Projected(
            rotate(q.unflatten(-1, heads), table),
            rotate(k.unflatten(-1, heads), table),
            v.unflatten(-1, heads),
            fast_q,
            FastTokens(fast_k, fast_v, rates, momentum),
        )
        return layout.split(tokens)

    def _enter_fast(self, x: Tensor, table: Tensor) -> Tensor:
        """Queries or keys ``[M, D]`` of the fast weights to ``[M, H, d]``."""
        if self.silu_qk:
            x = F.silu(x)
        x = x.unflatten(-1, (self.num_fast_heads, -1))
        length = torch.linalg.vector_norm(x.to(table.dtype), dim=-1, keepdim=True)
        x = x / (length + 1e-5).to(x.dtype)
        if self.rotate_fast:  # with the heads of the attention
            turned = rotate(x.flatten(-2).unflatten(-1, (-1, self.head_width)), table)
            x = turned.flatten(-2).view_as(x)
        return x

    def _leave(self, seen: Tensor, output: Tensor, x: Tensor) -> Tensor:
        """Attention ``[M, heads, width]`` and fast branch ``[M, H, d]`` to ``[M, D]``."""
        if self.ttt_scale_proj is None:
            output = self.ttt_norm(output)
        else:
            output = self.ttt_norm(output, self.ttt_scale_proj(x)[..., None])
        return self.o_proj(seen.flatten(-2) + output.flatten(-2))


def _nothing(tokens: FastTokens) -> Tensor:
    """Zero, with zero gradients for rates and momentum.

    A text of one chunk uses neither, but data-parallel ranks wait for all gradients.
    """
    zero = tokens.rates[:, :0].sum()
    return zero if tokens.momentum is None else zero + tokens.momentum[:, :0].sum()


def _initial(options: LaCTOptions) -> LowRankFastWeight | nn.Parameter:
    """A fresh ``w0`` or ``w2``."""
    shape = options.num_lact_heads, options.inner_width, options.fast_width
    if options.w0_w2_low_rank > 0:
        return LowRankFastWeight(*shape, options.w0_w2_low_rank, options.fw_init_gain)
    return _plain(*shape)


def _plain(heads: int, rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(heads, rows, columns) / math.sqrt(columns))


class LaCT(StackedLM):
    """LaCT, with the published parameter names. Its arguments: :class:`LaCTOptions`."""

    options_class = LaCTOptions

    def __init__(self, **fields: Any) -> None:
        super().__init__(LaCTOptions(**fields), LaCTMixer)
