"""Short continuations of shared states by this package's Triton kernels.

One launch forward, two backward. Kept for the backward pass are the inputs and the writes, which
are outputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine_kernels.launching import launch
from refine_kernels.power_of_two import power_of_two

MAX_TOKENS = 32  # of a fork, with the writes that it has made already

# Columns of the state that a program takes, warps and pipeline stages: found by compiling for
# sm_80, sm_90 and sm_100, so that registers suffice. Not timed on a GPU.
_PLANS = {
    "forks": (32, 4, 2),
    "forks_states_back": (32, 8, 2),
    "forks_rows_back": (32, 8, 2),
}


class Sizes(NamedTuple):
    """Of one call."""

    G: int  # states
    N: int  # forks of each
    H: int
    P: int  # writes that a fork has made already
    L: int  # new tokens of each fork
    K: int
    V: int

    @property
    def per_fork(self) -> int:
        """Rows of a tile for each fork."""
        return power_of_two(self.P + self.L, 2)


def _start(name: str, sizes: Sizes, flags: dict[str, bool], **arguments: Any) -> None:
    """One launch of the kernel called ``name``."""
    from refine_kernels.delta_rule import kernels_forks

    columns, warps, stages = _PLANS[name]
    per_fork, heads, wide = sizes.per_fork, sizes.G * sizes.H, sizes.K > 128
    rows = max(16, per_fork)
    if name == "forks_rows_back":  # a program for each tile of forks
        rows = max(rows, min(16 if wide else 32, power_of_two(sizes.N * per_fork)))
        grid: tuple[int, ...] = (heads * -(-sizes.N * per_fork // rows),)
        columns = min(columns, power_of_two(sizes.V, 16))
    else:  # a program for all forks, and some columns of their state
        warps = 8 if wide else warps
        columns = min(columns // 2 if wide or per_fork > 16 else columns, power_of_two(sizes.V, 16))
        grid = (heads, -(-sizes.V // columns))
    constants = {
        "H": sizes.H, "K": sizes.K, "V": sizes.V, "BK": power_of_two(sizes.K, 16), "BV": columns,
        "R": rows, "TP": per_fork, "OLD": sizes.P > 0, **flags,
    }  # fmt: skip
    arguments |= {"N": sizes.N, "P": sizes.P, "L": sizes.L}
    options = {"num_warps": warps, "num_stages": stages}
    launch(getattr(kernels_forks, name), grid, arguments, constants, options)


class TritonForks(torch.autograd.Function):
    """Forward and backward by Triton kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        log_decay: Tensor | None,
        matrix: Tensor,
        keys: Tensor | None,
        writes: Tensor | None,
        decay: Tensor | None,
        settings: tuple[int, float, bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Read ``L`` tokens of each of ``G * N`` forks.

        Args:
            ctx: of autograd.
            q: ``[G * N, L, H, K]``.
            k: ``[G * N, L, H, K]``.
            v: ``[G * N, L, H, V]``.
            beta: ``[G * N, L, H]``.
            log_decay: ``[G * N, L, H]`` or None.
            matrix: ``[G, H, K, V]`` float32.
            keys: ``[G, H, N, P, K]`` float32 of earlier writes, normalised, or None.
            writes: ``[G, H, N, P, V]`` float32, or None.
            decay: ``[G, H, N, P]`` float32, or None.
            settings: ``N``, scale, normalize_qk.

        Returns:
            Outputs ``[G * N, L, H, V]``; keys, writes and sums of decay with the new ones.
        """
        copies, scale, normalize = settings
        tokens = [None if x is None else x.contiguous() for x in (q, k, v, beta, log_decay)]
        state = [None if x is None else x.contiguous() for x in (matrix, keys, writes, decay)]
        sizes = Sizes(
            matrix.shape[0], copies, matrix.shape[1], 0 if keys is None else keys.shape[3],
            q.shape[1], *matrix.shape[2:],
        )  # fmt: skip
        per_write = (sizes.G, sizes.H, sizes.N, sizes.P + sizes.L)
        keys_after = matrix.new_empty(*per_write, sizes.K)
        writes_after = matrix.new_empty(*per_write, sizes.V)
        decay_after = None if log_decay is None else matrix.new_empty(per_write)
        output = torch.empty_like(v, memory_format=torch.contiguous_format)
        names = ("q", "k", "v", "beta", "log_decay", "matrix", "keys", "writes", "decay")
        flags = {"NORMALIZE": normalize, "DECAY": log_decay is not None}
        _start(
            "forks", sizes, flags, **dict(zip(names, (*tokens, *state), strict=True)),
            output=output, keys_after=keys_after, writes_after=writes_after,
            decay_after=decay_after, scale=scale,
        )  # fmt: skip
        ctx.save_for_backward(*tokens, state[0], state[1], state[3], writes_after)
        ctx.scale, ctx.sizes, ctx.flags = scale, sizes, flags
        ctx.set_materialize_grads(False)
        return output, keys_after, writes_after, decay_after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of everything but the settings."""
        q, k, v, beta, log_decay, matrix, keys, decay, writes_after = ctx.saved_tensors
        sizes: Sizes = ctx.sizes
        d_output, *d_after = (None if d is None else d.contiguous() for d in grads)
        if d_output is None:
            d_output = torch.zeros_like(v)
        after = any(d is not None for d in d_after)
        flags = ctx.flags | {"AFTER": after}
        per_write = writes_after.shape[:4]
        d_keys_after, d_writes_after, d_decay_after = d_after
        if after:
            if d_keys_after is None:
                d_keys_after = matrix.new_zeros(*per_write, sizes.K)
            if d_writes_after is None:
                d_writes_after = torch.zeros_like(writes_after)
            if d_decay_after is None and log_decay is not None:
                d_decay_after = matrix.new_zeros(per_write)
        both = {
            "q": q, "k": k, "beta": beta, "log_decay": log_decay, "keys": keys, "decay": decay,
            "d_output": d_output, "scale": ctx.scale,
        }  # fmt: skip
        pairs = matrix.new_empty(*per_write[:3], 2, sizes.per_fork, sizes.per_fork)
        d_q, d_k, d_v, d_matrix, d_u = map(torch.empty_like, (q, k, v, matrix, writes_after))
        _start(
            "forks_states_back", sizes, flags, **both, d_writes_after=d_writes_after, d_v=d_v,
            pairs=pairs, d_u=d_u, d_matrix=d_matrix,
        )  # fmt: skip
        d_beta, d_log_decay, d_keys, d_decay = (
            None if x is None else torch.empty_like(x) for x in (beta, log_decay, keys, decay)
        )
        _start(
            "forks_rows_back", sizes, flags, **both, v=v, matrix=matrix,
            writes_after=writes_after, pairs=pairs, d_u=d_u, d_keys_after=d_keys_after,
            d_decay_after=d_decay_after, d_q=d_q, d_k=d_k, d_beta=d_beta,
            d_log_decay=d_log_decay, d_keys=d_keys, d_decay=d_decay,
        )  # fmt: skip
        d_writes = None if keys is None else d_u[..., : sizes.P, :]
        return d_q, d_k, d_v, d_beta, d_log_decay, d_matrix, d_keys, d_writes, d_decay, None
