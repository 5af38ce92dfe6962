"""The delta rule by flash-linear-attention's Triton kernels, on CUDA.

Those kernels return the last state of a sequence. For the states at positions the row is read in
pieces, each from the (float32) last state of the one before it; the state at a position is then
found by reading its piece once more with the write strengths after the position set to zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TRAIL_TOKENS = 512  # of a piece: a shorter one reads less again, a longer one starts fewer kernels


def _chunk_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor,
    scale: float,
    normalize_qk: bool,
) -> tuple[Tensor, Tensor]:
    # Imported here: it costs seconds, and it cannot run on a CPU.
    if log_decay is None:
        from fla.ops.delta_rule import chunk_delta_rule

        return chunk_delta_rule(
            q, k, v, beta.to(q.dtype), scale, initial_state, True,
            use_qk_l2norm_in_kernel=normalize_qk,
        )  # fmt: skip
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    return chunk_gated_delta_rule(
        q, k, v, log_decay.float(), beta.to(q.dtype), scale, initial_state, True,
        use_qk_l2norm_in_kernel=normalize_qk,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class FlaTrail:
    """States at the borders of pieces, and what the pieces were made of."""

    states: Tensor  # [n, B, H, K, V] float32, entering each piece
    k: Tensor  # [B, T, H, K]
    v: Tensor  # [B, T, H, V]
    beta: Tensor  # [B, T, H]
    log_decay: Tensor | None  # [B, T, H]
    normalize_qk: bool

    def at(self, positions: Tensor) -> Tensor:
        """The states ``[B * S, H, K, V]`` after ``positions [B, S]`` tokens (0 to T)."""
        row = torch.arange(positions.shape[0], device=positions.device)[:, None]
        index = (positions // TRAIL_TOKENS).clamp(max=self.states.shape[0] - 1)
        used = positions - index * TRAIL_TOKENS
        offset = torch.arange(TRAIL_TOKENS, device=positions.device)
        token = (index[..., None] * TRAIL_TOKENS + offset).clamp(max=self.k.shape[1] - 1)
        inside = (offset < used[..., None])[..., None]

        def again(x: Tensor) -> Tensor:  # [B * S, TRAIL_TOKENS, ...]
            return x[row[..., None], token].flatten(0, 1)

        mask = inside.flatten(0, 1)
        decay = None if self.log_decay is None else again(self.log_decay) * mask
        k = again(self.k)
        _, state = _chunk_kernel(
            k, k, again(self.v), again(self.beta) * mask, decay,
            self.states[index, row].flatten(0, 1), 1.0, self.normalize_qk,
        )  # fmt: skip
        return state

    def coarse(self) -> tuple[Tensor, int]:
        """The states ``[m, B, H, K, V]``, and the tokens between."""
        return self.states, TRAIL_TOKENS


def delta_rule_fla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor,
    scale: float,
    normalize_qk: bool,
    keep_trail: bool,
) -> tuple[Tensor, Tensor, FlaTrail | None]:
    """Outputs ``[B,T,H,V]``, the last state ``[B,H,K,V]`` float32, and the trail if asked for."""
    if not keep_trail:
        output, state = _chunk_kernel(q, k, v, beta, log_decay, initial_state, scale, normalize_qk)
        return output, state, None
    outputs, states, state = [], [], initial_state
    # The backward pass of a split joins the pieces' gradients once; that of a slice would make a
    # gradient of the whole row for each piece.
    inputs = [x.split(TRAIL_TOKENS, 1) for x in (q, k, v, beta)]
    decays = [None] * len(inputs[0]) if log_decay is None else log_decay.split(TRAIL_TOKENS, 1)
    for *piece, decay in zip(*inputs, decays, strict=True):
        states.append(state)
        output, state = _chunk_kernel(*piece, decay, state, scale, normalize_qk)  # type: ignore[call-arg]
        outputs.append(output)
    trail = FlaTrail(torch.stack(states), k, v, beta, log_decay, normalize_qk)
    return torch.cat(outputs, 1), state, trail
