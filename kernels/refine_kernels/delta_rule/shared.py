"""Short continuations of the delta rule from states that are shared between rows.

``R = G * N`` rows continue ``G`` states, ``N`` rows each. A row's state is its shared matrix plus
the writes it has made since (``S + sum_j k_j u_j^T``), so that a matrix is read once for all of its
rows and never copied. Recent writes are folded into the matrix when there are many of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from refine_kernels.backends import DeltaBackend, not_for_products, takes_triton
from refine_kernels.delta_rule.forks_op import MAX_TOKENS, TritonForks
from refine_kernels.delta_rule.reference import l2_normalize
from refine_kernels.records import check_shapes

FOLD_AT = 16  # writes; beyond it a row's own matrix is cheaper to read than its list of writes


@dataclass(frozen=True, slots=True)
class SharedState:
    """Delta-rule states of ``G * N`` rows over ``G`` matrices."""

    matrix: Tensor  # [G, H, K, V]
    copies: int = 1  # N
    keys: Tensor | None = None  # [G, H, N, P, K] of the writes since
    writes: Tensor | None = None  # [G, H, N, P, V]
    decay: Tensor | None = None  # [G, H, N, P] running sum of log-decay since the matrix

    @property
    def rows(self) -> int:
        """``R = G * N``."""
        return self.matrix.shape[0] * self.copies

    def fold(self) -> Self:
        """One matrix per row, with the recent writes in it."""
        if self.copies == 1 and self.keys is None:
            return self
        matrix = self.matrix[:, None].expand(-1, self.copies, -1, -1, -1)
        if self.keys is not None and self.writes is not None:
            keys = self.keys
            if self.decay is not None:
                last = self.decay[..., -1:]
                keys = keys * (last - self.decay).exp()[..., None]
                matrix = matrix * last.exp().transpose(1, 2)[..., None]
            matrix = matrix + (keys.mT @ self.writes).transpose(1, 2)
        return type(self)(matrix.flatten(0, 1))

    def select(self, rows: Tensor) -> Self:
        """The rows ``rows [M]``, each with a matrix of its own."""
        return type(self)(self.fold().matrix[rows])

    def fork(self, n: int) -> Self:
        """Every row ``n`` times, sharing its matrix."""
        return type(self)(self.fold().matrix, n)


def delta_rule_shared(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: SharedState,
    *,
    scale: float | None = None,
    normalize_qk: bool = False,
    backend: DeltaBackend = "auto",
) -> tuple[Tensor, SharedState]:
    """Read ``t`` tokens of each of ``R`` rows; made for a few tokens.

    Args:
        q: queries ``[R, t, H, K]``.
        k: keys ``[R, t, H, K]``.
        v: values ``[R, t, H, V]``.
        beta: write strengths ``[R, t, H]``.
        log_decay: ``[R, t, H]`` or None.
        state: of the ``R`` rows.
        scale: of the queries, ``K**-0.5`` if left out.
        normalize_qk: divide q and k by their L2 norms first.
        backend: ``triton`` or ``torch``; ``auto`` and ``fla``, which has no such kernels, take
            Triton kernels on CUDA for 16-bit inputs, else torch.

    Returns:
        outputs ``[R, t, H, V]`` in v's type, and the state after the tokens.

    Raises:
        ValueError: shapes that do not fit, or a backend that cannot run.
    """
    rows, length, heads, key_width = q.shape
    per_head = (rows, length, heads)
    check_shapes(
        k=(k, (*per_head, key_width)),
        v=(v, (*per_head, v.shape[-1])),
        beta=(beta, per_head),
        log_decay=(log_decay, per_head),
        matrix=(state.matrix, (rows // state.copies, heads, key_width, v.shape[-1])),
    )
    scale = key_width**-0.5 if scale is None else scale
    unfit = not_for_products(q.dtype, key_width)
    own = "auto" if backend == "fla" else backend
    by_triton = takes_triton("delta_rule_shared", own, q.device, unfit) and q.numel() > 0
    inputs = _Tokens(q, k, v, beta, log_decay)
    # The state is float32 whatever the operands are: autocast must not round it inside.
    with torch.autocast(q.device.type, enabled=False):
        read = _by_triton if by_triton else _by_torch
        return read(inputs, state, scale, normalize_qk)


class _Tokens(NamedTuple):
    """``[R, t, H, ...]``."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    log_decay: Tensor | None

    def part(self, start: int, end: int) -> _Tokens:
        decay = None if self.log_decay is None else self.log_decay[:, start:end]
        q, k, v, beta = (x[:, start:end] for x in self[:4])
        return _Tokens(q, k, v, beta, decay)


def _by_triton(
    x: _Tokens, state: SharedState, scale: float, normalize_qk: bool
) -> tuple[Tensor, SharedState]:
    """All tokens in one launch; of very many, one for each piece of ``MAX_TOKENS``."""
    length, outputs = x.q.shape[1], []
    for start in range(0, length, MAX_TOKENS):
        part = x.part(start, start + MAX_TOKENS) if length > MAX_TOKENS else x
        earlier = 0 if state.keys is None else state.keys.shape[-2]
        if earlier + part.q.shape[1] > MAX_TOKENS:
            state = state.fold()
        output, keys, writes, decay = TritonForks.apply(
            part.q, part.k.to(part.q.dtype), part.v.to(part.q.dtype), part.beta, part.log_decay,
            state.matrix, state.keys, state.writes, state.decay,
            (state.copies, scale, normalize_qk),
        )  # fmt: skip
        outputs.append(output)
        state = _folded_in_time(SharedState(state.matrix, state.copies, keys, writes, decay))
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
    return output.to(x.v.dtype), state


def _by_torch(
    x: _Tokens, state: SharedState, scale: float, normalize_qk: bool
) -> tuple[Tensor, SharedState]:
    q, k, v, beta, log_decay = x
    out_dtype = v.dtype
    dtype = state.matrix.dtype
    groups, copies, length = state.matrix.shape[0], state.copies, q.shape[1]

    def rows_first(x: Tensor) -> Tensor:  # [R, t, H, ...] to [G, H, N, t, ...]
        return x.to(dtype).unflatten(0, (groups, copies)).movedim(3, 1)

    q, k, v, beta = rows_first(q), rows_first(k), rows_first(v), rows_first(beta)
    if normalize_qk:
        q, k = l2_normalize(q), l2_normalize(k)
    q = q * scale

    def read(x: Tensor) -> Tensor:  # x^T S for all rows of a group at once
        return (x.flatten(2, 3) @ state.matrix).unflatten(2, (copies, length))

    from_key, from_query = read(k), read(q)
    total = None
    if log_decay is not None:
        total = rows_first(log_decay).cumsum(-1)  # [G, H, N, t] running sum since the matrix
        if state.decay is not None:
            total = total + state.decay[..., -1:]
        grow = total.exp()[..., None]
        from_key, from_query = from_key * grow, from_query * grow
    right_side = v - from_key
    if state.keys is not None and state.writes is not None:
        overlap = k @ state.keys.mT
        if total is not None and state.decay is not None:
            overlap = overlap * (total[..., :, None] - state.decay[..., None, :]).exp()
        right_side = right_side - overlap @ state.writes
    right_side = beta[..., None] * right_side
    writes = right_side
    if length > 1:
        mixing = beta[..., None] * (k @ k.mT)
        if total is not None:
            mixing = mixing * (total[..., :, None] - total[..., None, :]).tril(-1).exp()
        writes = torch.linalg.solve_triangular(mixing, right_side, upper=False, unitriangular=True)
    keys, decay = k, total
    first = 0
    if state.keys is not None and state.writes is not None:
        first = state.keys.shape[-2]
        keys = torch.cat([state.keys, k], -2)
        writes = torch.cat([state.writes, writes], -2)
        if total is not None and state.decay is not None:
            decay = torch.cat([state.decay, total], -1)
    overlap = (q @ keys.mT).tril(first)
    if total is not None and decay is not None:
        overlap = overlap * (total[..., :, None] - decay[..., None, :]).tril(first).exp()
    output = from_query + overlap @ writes
    after = _folded_in_time(SharedState(state.matrix, copies, keys, writes, decay))
    return output.movedim(1, 3).flatten(0, 1).to(out_dtype), after


def _folded_in_time(state: SharedState) -> SharedState:
    assert state.keys is not None
    return state.fold() if state.keys.shape[-2] >= FOLD_AT else state
