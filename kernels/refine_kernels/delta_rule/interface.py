"""The delta rule: checks, and the choice of an implementation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from refine_kernels.backends import DeltaBackend, choose
from refine_kernels.compact import Mailbox
from refine_kernels.delta_rule.chunked import ChunkedDeltaRule
from refine_kernels.delta_rule.fla_backend import FlaTrail, delta_rule_fla
from refine_kernels.delta_rule.inside import Pass
from refine_kernels.delta_rule.kernel_trail import CoarseTrail, GivenTrail, delta_rule_triton
from refine_kernels.delta_rule.trail import DeltaRuleTrail
from refine_kernels.records import check_shapes


@dataclass(frozen=True, slots=True)
class DeltaRuleOutput:
    """What one pass of the delta rule returns."""

    output: Tensor  # [B, T, H, V] in v's type
    state: Tensor  # [B, H, K, V] after the last token, float32 (float64 for float64 inputs)
    # at(positions [B, S]) gives [B * S, H, K, V]
    trail: DeltaRuleTrail | FlaTrail | CoarseTrail | GivenTrail | None


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    scale: float | None = None,
    normalize_qk: bool = False,
    keep_trail: bool = False,
    positions: Tensor | None = None,
    chunk_size: int = 64,
    backend: DeltaBackend = "auto",
) -> DeltaRuleOutput:
    """Read whole sequences (equations in ``reference.py``), differentiably.

    Args:
        q: queries ``[B, T, H, K]``.
        k: keys ``[B, T, H, K]``.
        v: values ``[B, T, H, V]``.
        beta: write strengths ``[B, T, H]``; 0 for padding, which then changes no state.
        log_decay: ``[B, T, H]``, at most 0; 0 for padding; none if left out.
        initial_state: ``[B, H, K, V]``, zeros if left out.
        scale: of the queries, ``K**-0.5`` if left out.
        normalize_qk: divide q and k by their L2 norms (eps 1e-6 inside the root).
        keep_trail: return what the state at any position is made of.
        positions: ``[B, S]`` tokens (0 to T) whose states are wanted: the trail has at least
            those. With this very tensor the Triton kernels store them as they pass.
        chunk_size: tokens of a chunk, for torch and Triton (16, 32 or 64, and 32 at most where
            keys are wider than 128).
        backend: ``auto`` takes Triton kernels on CUDA for 16-bit inputs, else torch; see
            :func:`refine_kernels.backends.choose`.

    Raises:
        ValueError: shapes that do not fit, or a backend that cannot run.
    """
    batch, length, heads, key_width = q.shape
    per_head, state_shape = (batch, length, heads), (batch, heads, key_width, v.shape[-1])
    check_shapes(
        k=(k, (*per_head, key_width)),
        v=(v, (*per_head, v.shape[-1])),
        beta=(beta, per_head),
        log_decay=(log_decay, per_head),
        initial_state=(initial_state, state_shape),
    )
    if length == 0:
        raise ValueError("delta_rule needs at least one token")
    scale = key_width**-0.5 if scale is None else scale
    state_dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    if initial_state is None:
        initial_state = v.new_zeros(state_shape, dtype=state_dtype)
    initial_state = initial_state.to(state_dtype)
    inputs = (q, k, v, beta, log_decay, initial_state, scale, normalize_qk)
    wanted = keep_trail or positions is not None
    chosen = choose(backend, q.device, q.dtype, key_width, log_decay is not None)
    if chosen == "fla":
        return DeltaRuleOutput(*delta_rule_fla(*inputs, wanted))
    # The state is float32 whatever the operands are: autocast must not round it inside.
    with torch.autocast(q.device.type, enabled=False):
        if chosen == "triton":
            return DeltaRuleOutput(*delta_rule_triton(*inputs, keep_trail, chunk_size, positions))
        mailbox = Mailbox()
        output, state, handle, states, u = ChunkedDeltaRule.apply(*inputs, chunk_size, mailbox)
    trail = None
    if wanted:
        source = Pass.of(k, log_decay, normalize_qk, handle, mailbox)
        trail = DeltaRuleTrail(states, u, source)
    return DeltaRuleOutput(output, state, trail)
