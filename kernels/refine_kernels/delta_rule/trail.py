"""The state of a delta rule after any number of tokens, from one pass that kept all chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from refine_kernels.delta_rule.inside import EVERY, Chunks, Pass
from refine_kernels.records import rows_of


@dataclass(frozen=True, slots=True)
class DeltaRuleTrail:
    """What a chunked pass keeps: ``n`` chunks of ``C`` tokens."""

    states: Tensor  # [n, B, H, K, V] entering each chunk, without history
    u: Tensor  # [n, B, H, C, V] what each token writes, likewise
    source: Pass

    def at(self, positions: Tensor) -> Tensor:
        """The states ``[B * S, H, K, V]`` after ``positions [B, S]`` tokens (0 to T)."""
        batch, chunk = self.u.shape[1], self.u.shape[3]
        chunks = Chunks.of(positions, self.source.k.shape[1], chunk)
        row = torch.arange(batch, device=positions.device)[:, None]
        place = (chunks.index * batch + row).flatten()
        return self.source.states(rows_of(self.states, place), rows_of(self.u, place), chunks)

    def coarse(self) -> tuple[Tensor, int]:
        """The states of every ``EVERY``-th chunk ``[m, B, H, K, V]``, and the tokens between."""
        return self.states[::EVERY].clone(), EVERY * self.u.shape[3]
