"""The state of a delta rule after any number of tokens, from one pass.

Row ``i`` of a chunk's ``u`` depends on nothing after token ``i``; hence the state after ``r``
tokens of a chunk is the entering state plus ``K[:r]^T u[:r]``: one masked product, exact,
differentiable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from refine_kernels.delta_rule.reference import l2_normalize
from refine_kernels.records import rows_of


@dataclass(frozen=True, slots=True)
class DeltaRuleTrail:
    """What a chunked pass keeps: ``n`` chunks of ``C`` tokens."""

    states: Tensor  # [n, B, H, K, V] entering each chunk
    u: Tensor  # [n, B, H, C, V] what each token writes
    k: Tensor  # [B, T, H, K] keys as they were given
    log_decay: Tensor | None  # [B, T, H]
    normalize_qk: bool

    def at(self, positions: Tensor) -> Tensor:
        """The states ``[B * S, H, K, V]`` after ``positions [B, S]`` tokens (0 to T)."""
        num_chunks, batch, _, chunk, _ = self.u.shape
        length = self.k.shape[1]
        row = torch.arange(batch, device=positions.device)[:, None]
        index = (positions // chunk).clamp(max=num_chunks - 1)
        used = (positions - index * chunk).flatten()  # [B * S], 0 to C
        offset = torch.arange(chunk, device=positions.device)
        inside = offset < used[:, None]  # [B * S, C]
        tokens = (index[..., None] * chunk + offset).clamp(max=length - 1) + row[..., None] * length
        tokens = tokens.view(-1, chunk)
        chunks = (index * batch + row).flatten()
        keys = rows_of(self.k, tokens).to(self.states.dtype)  # [B * S, C, H, K]
        if self.normalize_qk:
            keys = l2_normalize(keys)
        state = rows_of(self.states, chunks)  # [B * S, H, K, V]
        weight = inside.to(state.dtype)[..., None]  # [B * S, C, 1]
        if self.log_decay is not None:
            decay = rows_of(self.log_decay, tokens).to(state.dtype)
            decay = (decay * weight).cumsum(1)  # stays at its last value after `used`
            last = decay[:, -1:]
            weight = weight * (last - decay).exp()
            state = state * last.squeeze(1).exp()[..., None, None]
        keys = keys * weight[..., None]
        return state + keys.permute(0, 2, 3, 1) @ rows_of(self.u, chunks)
