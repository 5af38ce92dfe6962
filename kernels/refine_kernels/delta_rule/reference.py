"""The delta rule, one token after the other: slow, and plainly right.

S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - exp(g_t) S_{t-1}^T k_t)^T
o_t = scale * S_t^T q_t
"""

from __future__ import annotations

import torch
from torch import Tensor


def l2_normalize(x: Tensor, eps: float = 1e-6) -> Tensor:
    """``x / sqrt(sum(x^2) + eps)`` over the last dimension."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def delta_rule_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    scale: float | None = None,
    normalize_qk: bool = False,
) -> tuple[Tensor, Tensor]:
    """Outputs and the state after *every* token.

    Args:
        q: queries ``[B, T, H, K]``.
        k: keys ``[B, T, H, K]``.
        v: values ``[B, T, H, V]``.
        beta: write strengths ``[B, T, H]``; a token with 0 leaves the state alone.
        log_decay: ``[B, T, H]``, none if left out.
        initial_state: ``[B, H, K, V]``, zeros if left out.
        scale: of the queries, ``K**-0.5`` if left out.
        normalize_qk: divide q and k by their L2 norms first.

    Returns:
        outputs ``[B, T, H, V]`` and states ``[B, T + 1, H, K, V]``, the initial one first.
    """
    if normalize_qk:
        q, k = l2_normalize(q), l2_normalize(k)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    batch, length, heads, key_width = k.shape
    state = initial_state
    if state is None:
        state = v.new_zeros(batch, heads, key_width, v.shape[-1])
    outputs, states = [], [state]
    for t in range(length):
        if log_decay is not None:
            state = state * log_decay[:, t].exp()[..., None, None]
        read = torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        write = beta[:, t, :, None] * (v[:, t] - read)
        state = state + k[:, t, :, :, None] * write[:, :, None, :]
        outputs.append(scale * torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
        states.append(state)
    if not outputs:
        return v.new_zeros(v.shape), torch.stack(states, 1)
    return torch.stack(outputs, 1), torch.stack(states, 1)
