"""What a layer around a delta rule carries from token to token, and keeps of a pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

from torch import Tensor

from refine_kernels.compact import Tapped, tap
from refine_kernels.delta_rule import DeltaRuleOutput, SharedState
from refine_kernels.short_conv import conv_tails_at
from refine_pl.backbones.base import LayerState, LayerTrail


@dataclass(frozen=True, slots=True)
class DeltaRuleState(LayerState):
    """A delta rule's matrix and the last inputs of its convolutions, for ``R`` rows."""

    rule: SharedState
    tails: tuple[Tensor, ...]  # each [R, conv_size - 1, channels]; empty without convolutions


class ConvInputs(NamedTuple):
    """What went into the convolutions, so that their states at any position can be gathered."""

    inputs: tuple[Tapped, ...]  # each [B, T, channels]; none without convolutions
    tails: tuple[Tensor, ...]  # each [B, conv_size - 1, channels] before the first; or none
    width: int

    @classmethod
    def of(
        cls,
        inputs: tuple[Tensor, ...],
        tails: tuple[Tensor, ...],
        width: int | None,
        wanted: bool,
    ) -> tuple[tuple[Tensor, ...], Self]:
        """The inputs for further use, and what is kept of them.

        Args:
            inputs: each ``[B, T, channels]``.
            tails: as the field.
            width: taps of the convolutions; None: there are none.
            wanted: states at positions will be asked for, perhaps with gradients.
        """
        if width is None or not wanted:
            kept = () if width is None else tuple(map(Tapped, inputs))
            return inputs, cls(kept, tails, width or 1)
        through, kept = zip(*map(tap, inputs), strict=True)
        return through, cls(kept, tails, width)

    def at(self, positions: Tensor) -> tuple[Tensor, ...]:
        """Those before ``positions [B, S]``, each ``[B * S, conv_size - 1, channels]``."""
        return conv_tails_at(self.inputs, self.tails, positions, self.width)


@dataclass(frozen=True, slots=True)
class DeltaRuleLayerTrail(LayerTrail):
    """The recurrence's trail beside the inputs of the convolutions."""

    rule: DeltaRuleOutput
    convs: ConvInputs

    def at(self, positions: Tensor) -> DeltaRuleState:
        """The state after ``positions [B, S]`` tokens, rows flattened to ``B * S``."""
        assert self.rule.trail is not None
        matrix = self.rule.trail.at(positions)
        return DeltaRuleState(SharedState(matrix), self.convs.at(positions))


class Read(NamedTuple):
    """What a token brings, ``[rows, tokens, ...]``, before the convolutions."""

    inputs: tuple[Tensor, ...]  # each [rows, tokens, channels]
    beta: Tensor  # [rows, tokens, heads]
    log_decay: Tensor | None  # [rows, tokens, heads]

    def masked(self, mask: Tensor) -> Read:
        """The same, where tokens outside of ``mask [rows, tokens]`` write and forget nothing."""
        decay, real = self.log_decay, mask[..., None]
        decay = None if decay is None else decay * real.to(decay.dtype)
        return self._replace(beta=self.beta * real.to(self.beta.dtype), log_decay=decay)
