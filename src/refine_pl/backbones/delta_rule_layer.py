"""What mixers around the delta rule share: convolutions, the recurrence, forks, states, trails."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from refine_kernels.backends import FlaBackend
from refine_kernels.delta_rule import (
    DeltaRuleOutput,
    SharedState,
    delta_rule,
    delta_rule_shared,
)
from refine_kernels.short_conv import conv_tail_at, short_conv
from refine_pl.backbones.base import LayerState, LayerTrail, TokenLayout
from refine_pl.backbones.stack import Mixer

# Rows that continue a state by fewer tokens than this keep their writes beside the state.
SHORT = 16


@dataclass(frozen=True, slots=True)
class DeltaRuleState(LayerState):
    """A delta rule's matrix and the last inputs of its convolutions, for ``R`` rows."""

    rule: SharedState
    tails: tuple[Tensor, ...]  # each [R, conv_size - 1, channels]; empty without convolutions

    def select(self, rows: Tensor) -> Self:
        """The rows ``rows [M]`` int64."""
        return type(self)(self.rule.select(rows), tuple(t[rows] for t in self.tails))

    def fork(self, n: int) -> Self:
        """Every row ``n`` times, sharing its matrix."""
        tails = tuple(t.repeat_interleave(n, 0) for t in self.tails)
        return type(self)(self.rule.fork(n), tails)

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor that is held."""
        return (*self.rule.tensors(), *self.tails)

    def detach(self) -> Self:
        """The same values without their history."""
        return type(self)(self.rule.detach(), tuple(t.detach() for t in self.tails))


class _ConvInput(NamedTuple):
    """What went into a convolution, so that its state at any position can be gathered."""

    inputs: Tensor  # [B, T, channels]
    tail: Tensor | None  # [B, conv_size - 1, channels] before the first
    width: int

    def at(self, positions: Tensor) -> Tensor:
        return conv_tail_at(self.inputs, self.tail, positions, self.width)


@dataclass(frozen=True, slots=True)
class DeltaRuleLayerTrail(LayerTrail):
    """The recurrence's trail beside the inputs of the convolutions."""

    rule: DeltaRuleOutput
    convs: tuple[_ConvInput, ...]

    def at(self, positions: Tensor) -> DeltaRuleState:
        """The state after ``positions [B, S]`` tokens, rows flattened to ``B * S``."""
        assert self.rule.trail is not None
        matrix = self.rule.trail.at(positions)
        return DeltaRuleState(SharedState(matrix), tuple(c.at(positions) for c in self.convs))


class RuleInputs(NamedTuple):
    """What goes into the recurrence, ``[rows, tokens, heads, width]``."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor  # [rows, tokens, heads]
    log_decay: Tensor | None  # [rows, tokens, heads]


class ShortConv(nn.Module):
    """The parameters of a short convolution, under their published names."""

    def __init__(self, channels: int, width: int, silu: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.silu = silu
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor, tail: Tensor | None) -> Tensor:
        """``[B, T, channels]`` to the same shape; ``tail [B, width - 1, channels]``."""
        return short_conv(x, self.weight, tail=tail, silu=self.silu)


class DeltaRuleMixer(Mixer):
    """Projections, convolutions, the delta rule, an output norm and projection.

    Subclasses create the projections and say what enters the recurrence and what leaves it. All
    rows, sequences and forks, are projected at once; the recurrence of the sequences comes first,
    and the forks start from its states.
    """

    normalize_qk: bool
    backend: FlaBackend
    q_conv1d: ShortConv | None
    k_conv1d: ShortConv | None
    v_conv1d: ShortConv | None

    @abstractmethod
    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """``x [M, D]`` to q, k, v before the convolutions, ``beta [M, H]``, ``log_decay``."""

    @abstractmethod
    def enter(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v behind the convolutions ``[R, t, channels]`` to ``[R, t, H, width]``."""

    @abstractmethod
    def leave(self, output: Tensor, x: Tensor) -> Tensor:
        """The recurrence's output ``[M, H, V]`` and the mixer's input to ``[M, D]``."""

    def forward(
        self, x: Tensor, layout: TokenLayout, state: LayerState | None, keep_trail: bool
    ) -> tuple[Tensor, DeltaRuleState, DeltaRuleLayerTrail | None]:
        """Mix tokens; see :class:`Mixer`."""
        assert state is None or isinstance(state, DeltaRuleState)
        *qkv, beta, log_decay = self.project(x)
        pairs = [layout.split(part) for part in qkv]
        betas = layout.split(beta)
        decays = (None, None) if log_decay is None else layout.split(log_decay)
        main_beta, main_decay = betas[0], decays[0]
        if layout.mask is not None:  # a token that writes nothing and forgets nothing
            main_beta = main_beta * layout.mask[..., None].to(main_beta.dtype)
            if main_decay is not None:
                main_decay = main_decay * layout.mask[..., None].to(main_decay.dtype)

        main = [pair[0] for pair in pairs]
        tails = None if state is None or not state.tails else state.tails
        inputs = RuleInputs(*self._convolve(main, tails), main_beta, main_decay)
        short = layout.length < SHORT and not keep_trail and layout.forks is None
        if state is not None and short:
            output, rule_state = delta_rule_shared(
                *inputs, state.rule, normalize_qk=self.normalize_qk
            )
            trail = None
        else:
            result = delta_rule(
                *inputs,
                initial_state=None if state is None else state.rule.fold().matrix,
                normalize_qk=self.normalize_qk,
                keep_trail=keep_trail or layout.forks is not None,
                backend=self.backend,
            )
            output, rule_state = result.output, SharedState(result.state)
            trail = DeltaRuleLayerTrail(result, self._conv_inputs(main, tails))
        end = layout.num_tokens[:, None]
        after = DeltaRuleState(rule_state, tuple(c.at(end) for c in self._conv_inputs(main, tails)))

        fork_output = None
        if layout.forks is not None and trail is not None:
            forked = trail.at(layout.forks.positions).fork(layout.forks.tokens.shape[2])
            fork = [part for _, part in pairs if part is not None]
            assert betas[1] is not None
            fork_inputs = RuleInputs(
                *self._convolve(fork, forked.tails or None), betas[1], decays[1]
            )
            fork_output, _ = delta_rule_shared(
                *fork_inputs, forked.rule, normalize_qk=self.normalize_qk
            )
        y = self.leave(layout.join(output, fork_output), x)
        return y, after, trail if keep_trail else None

    def _convs(self) -> list[ShortConv]:
        return [c for c in (self.q_conv1d, self.k_conv1d, self.v_conv1d) if c is not None]

    def _convolve(
        self, parts: list[Tensor], tails: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        convs = self._convs()
        if convs:
            parts = [
                conv(part, None if tails is None else tails[i])
                for i, (conv, part) in enumerate(zip(convs, parts, strict=True))
            ]
        q, k, v = parts
        return self.enter(q, k, v)

    def _conv_inputs(
        self, parts: list[Tensor], tails: tuple[Tensor, ...] | None
    ) -> tuple[_ConvInput, ...]:
        return tuple(
            _ConvInput(part, None if tails is None else tails[i], conv.weight.shape[-1])
            for i, (conv, part) in enumerate(zip(self._convs(), parts, strict=False))
        )
