"""What mixers around the delta rule share: convolutions, the recurrence, forks, states, trails."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine_kernels.backends import DeltaBackend
from refine_kernels.compact import Tapped
from refine_kernels.delta_rule import SharedState, delta_rule, delta_rule_shared
from refine_kernels.gated_norm import GateActivation
from refine_kernels.short_conv import short_conv, three_short_convs
from refine_pl.backbones.attention_layer import AttentionMixer
from refine_pl.backbones.base import LayerState, LayerTrail, TokenLayout
from refine_pl.backbones.delta_rule_options import DeltaRuleOptions, DeltaRuleShape
from refine_pl.backbones.delta_rule_states import (
    ConvInputs,
    DeltaRuleLayerTrail,
    DeltaRuleState,
    Read,
)
from refine_pl.backbones.lean_trail import LeanTrail
from refine_pl.backbones.precision import precision_now, product_type
from refine_pl.backbones.stack import Block, Mixer, RMSNorm, StackedLM

# Rows that continue a state by fewer tokens than this keep their writes beside the state.
SHORT = 16


class ShortConv(nn.Module):
    """The parameters of a short convolution, under their published names."""

    def __init__(self, channels: int, width: int, silu: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.silu = silu
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor | None, tail: Tensor | None) -> Tensor:
        """``[B, T, channels]`` to the same shape; ``tail [B, width - 1, channels]``.

        Without ``x`` the taps, for a product of several convolutions: a weight that is read
        outside a call has not gone through the module's hooks, and pruning sets it in one.
        """
        if x is None:
            return self.weight
        return short_conv(x, self.weight, tail=tail, silu=self.silu)


def convolve_together(
    conv: ShortConv,
    sizes: tuple[int, int, int],
    inputs: tuple[Tensor, ...],
    tails: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of one convolution over all of them, see :meth:`DeltaRuleCore.convolve`."""
    q, k, v = conv(inputs[0], tails[0] if tails else None).split(sizes, -1)
    return q, k, v


class DeltaRuleCore(Mixer):
    """The delta rule over sequences, and over forks from their states.

    Subclasses own the parameters, and say what tokens bring (:meth:`project`, :meth:`strengths`),
    what enters the recurrence (:meth:`convolve`, :meth:`activate`) and what becomes of its output
    (:meth:`leave`). All rows, sequences and forks, are projected at once; the recurrence of the
    sequences comes first, and the forks start from its states.
    """

    kind = "delta_rule"

    def __init__(self, shape: DeltaRuleShape) -> None:
        super().__init__()
        self.num_heads, self.num_value_heads = shape.num_heads, shape.value_heads
        self.key_width, self.value_width = shape.key_width, shape.value_width
        self.normalize_qk = True
        self.has_convs, self.conv_size = shape.conv_size is not None, shape.conv_size or 1
        self.strength_scale = shape.strength_scale
        self.backend: DeltaBackend = shape.backend

    @abstractmethod
    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Of ``x [M, D]`` what enters the convolutions, each ``[M, channels]``."""

    @abstractmethod
    def strengths(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of ``x [M, D]`` the write strengths ``[M, H]``, 0 to 1, and the log-decay ``[M, H]``."""

    @abstractmethod
    def convolve(
        self, inputs: tuple[Tensor, ...], tails: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs ``[R, t, channels]`` to activated q, k and v ``[R, t, heads * width]``.

        ``tails`` are the ``conv_size - 1`` inputs before the first; empty ones are zeros.
        """

    @abstractmethod
    def activate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """``q, k [R, t, heads, K]`` as they enter the recurrence, one head for each of v's."""

    @abstractmethod
    def leave(self, output: Tensor, x: Tensor) -> Tensor:
        """The recurrence's output ``[M, H, V]`` and the mixer's input to ``[M, D]``."""

    def forward(
        self, x: Tensor, layout: TokenLayout, state: LayerState | None, keep_trail: bool
    ) -> tuple[Tensor, DeltaRuleState, LayerTrail | None]:
        """Mix tokens; see :class:`Mixer`."""
        assert state is None or isinstance(state, DeltaRuleState)
        beta, log_decay = self.strengths(x)
        main, fork = layout.split(Read(self.project(x), beta * self.strength_scale, log_decay))
        if layout.mask is not None:
            main = main.masked(layout.mask)
        tails = () if state is None else state.tails
        wanted = keep_trail or layout.forks is not None
        width = self.conv_size if self.has_convs else None
        through, convs = ConvInputs.of(main.inputs, tails, width, wanted)
        main = main._replace(inputs=through)
        inputs = self._enter(main, tails)
        short = layout.length < SHORT and not wanted
        trail = None
        if state is not None and short:
            output, rule_state = delta_rule_shared(
                *inputs, state.rule, normalize_qk=self.normalize_qk, backend=self.backend
            )
        else:
            result = delta_rule(
                *inputs,
                initial_state=None if state is None else state.rule.fold().matrix,
                normalize_qk=self.normalize_qk,
                keep_trail=keep_trail,
                positions=None if layout.forks is None else layout.forks.positions,
                backend=self.backend,
            )
            output, rule_state = result.output, SharedState(result.state)
            trail = DeltaRuleLayerTrail(result, convs)
        after = DeltaRuleState(rule_state, convs.at(layout.ends))
        fork_output = None
        if layout.forks is not None and fork is not None and trail is not None:
            forked = trail.at(layout.forks.positions).fork(layout.forks.tokens.shape[2])
            fork_output, _ = delta_rule_shared(
                *self._enter(fork, forked.tails),
                forked.rule,
                normalize_qk=self.normalize_qk,
                backend=self.backend,
            )
        y = self.leave(layout.join(output, fork_output), x)
        if not keep_trail or trail is None:
            return y, after, None
        return y, after, self._lean(x, layout, trail) if layout.lean else trail

    def _lean(self, x: Tensor, layout: TokenLayout, trail: DeltaRuleLayerTrail) -> LeanTrail:
        """What a trail needs if it may read some pieces of the row again."""
        assert trail.rule.trail is not None
        main = x.to(product_type(x))[: layout.batch * layout.length]
        states, piece = trail.rule.trail.coarse()
        return LeanTrail(
            self,
            main.unflatten(0, (layout.batch, layout.length)),
            layout.mask,
            states,
            piece,
            trail.convs.tails,
            precision_now(x.device),
        )

    def read_piece(
        self,
        x: Tensor,
        lead: int,
        first: Tensor,
        mask: Tensor | None,
        tails: Sequence[Tensor],
        entering: Tensor,
        positions: Tensor,
    ) -> DeltaRuleState:
        """The states after ``positions [U, P]`` tokens of pieces of rows, ``U * P`` of them.

        Args:
            x: ``[U, lead + t, D]``, the mixer's inputs.
            lead: tokens before a piece.
            first: ``[U]`` bool, pieces with nothing before them in the row.
            mask: ``[U, t]`` bool, real tokens; None: all.
            tails: before the rows, ``[U, lead, channels]``; none: zeros.
            entering: ``[U, H, K, V]``, the states that enter the pieces.
            positions: 0 to t.
        """
        length = x.shape[1]
        projected = [y.unflatten(0, (-1, length)) for y in self.project(x.flatten(0, 1))]
        beta, decay = self.strengths(x[:, lead:].flatten(0, 1))
        decay = None if decay is None else decay.unflatten(0, (len(x), -1))
        beta = (beta * self.strength_scale).unflatten(0, (len(x), -1))
        inputs = tuple(y[:, lead:] for y in projected)
        before: list[Tensor] = []
        if self.has_convs:
            row_start = first[:, None, None]
            for y, tail in zip_longest(projected, tails):
                outside = 0 if tail is None else tail.to(y.dtype)
                before.append(torch.where(row_start, outside, y[:, :lead]))
        tokens = Read(inputs, beta, decay)
        tokens = tokens if mask is None else tokens.masked(mask)
        result = delta_rule(
            *self._enter(tokens, tuple(before)),
            initial_state=entering,
            normalize_qk=self.normalize_qk,
            positions=positions,
            backend=self.backend,
        )
        taps = tuple(map(Tapped, inputs)) if self.has_convs else ()
        convs = ConvInputs(taps, tuple(before), self.conv_size)
        return DeltaRuleLayerTrail(result, convs).at(positions)

    def _enter(
        self, tokens: Read, tails: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """What enters the recurrence: q, k, v ``[R, t, H, width]``, beta, log-decay."""
        q, k, v = self.convolve(tokens.inputs, tails)
        q = q.unflatten(-1, (self.num_heads, self.key_width))
        k = k.unflatten(-1, (self.num_heads, self.key_width))
        v = v.unflatten(-1, (self.num_value_heads, self.value_width))
        return *self.activate(q, k), v, tokens.beta, tokens.log_decay


class DeltaRuleMixer(DeltaRuleCore):
    """The mixer of flash-linear-attention's models: projections and convolutions for q, k and v.

    Subclasses say how strongly a token writes and how much it forgets (:meth:`add_strengths` and
    :meth:`strengths`), and what happens to q and k (:meth:`activate`).

    Args:
        shape: of the layer.
        silu_qk: q and k are activated by SiLU, as v is.
    """

    def __init__(self, shape: DeltaRuleShape, silu_qk: bool = True) -> None:
        super().__init__(shape)
        hidden_size, width = shape.hidden_size, shape.conv_size
        key_size, _, value_size = shape.sizes
        self.silu_qk = silu_qk
        self.gate_activation: GateActivation = "silu"
        self.q_proj = nn.Linear(hidden_size, key_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, value_size, bias=False)
        self.add_strengths(shape)
        if width is not None:
            self.q_conv1d = ShortConv(key_size, width, silu_qk)
            self.k_conv1d = ShortConv(key_size, width, silu_qk)
            self.v_conv1d = ShortConv(value_size, width, True)
        self.g_proj = nn.Linear(hidden_size, value_size, bias=False) if shape.use_gate else None
        self.o_norm = RMSNorm(shape.value_width, shape.norm_eps, for_products=True)
        self.o_proj = nn.Linear(value_size, hidden_size, bias=False)

    @abstractmethod
    def add_strengths(self, shape: DeltaRuleShape) -> None:
        """Create the parameters of :meth:`strengths`."""

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`DeltaRuleCore`."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def convolve(
        self, inputs: tuple[Tensor, ...], tails: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`DeltaRuleCore`."""
        q, k, v = inputs
        if self.has_convs:  # they bring their own SiLU
            convs = (self.q_conv1d, self.k_conv1d, self.v_conv1d)
            weights, silu = [conv(None, None) for conv in convs], [conv.silu for conv in convs]
            q, k, v = three_short_convs(inputs, weights, tails, silu)
        else:
            v = F.silu(v)
            if self.silu_qk:
                q, k = F.silu(q), F.silu(k)
        return q, k, v

    def leave(self, output: Tensor, x: Tensor) -> Tensor:
        """See :class:`DeltaRuleCore`."""
        if self.g_proj is None:
            output = self.o_norm(output)
        else:
            gate = self.g_proj(x).view_as(output)
            output = self.o_norm(output, gate, self.gate_activation)
        return self.o_proj(output.flatten(-2))


class DeltaRuleLM(StackedLM):
    """A stack of delta rules, with layers of softmax attention where its options name them."""

    def make_block(self, layer: int) -> Block:
        """See :class:`StackedLM`."""
        assert isinstance(self.options, DeltaRuleOptions)
        spec = self.options.attention(layer)
        if spec is None:
            return super().make_block(layer)
        return Block(AttentionMixer(spec.shape(self.hidden_size)), self.options)
