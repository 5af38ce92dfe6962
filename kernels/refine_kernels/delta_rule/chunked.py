"""The delta rule in chunks of tokens, in plain torch, with a backward pass of its own.

The maths is in this folder's README. The recurrence runs over *pieces* of some chunks: everything
inside a piece stays in the processor's cache. Shapes: ``B`` rows, ``H`` heads, ``C`` tokens of a
chunk, ``P`` chunks of a piece, ``n`` chunks of the whole row, ``K`` and ``V`` widths of keys and
values. Working tensors put the chunk first, ``[P, B*H, C, K]``, so that one step of the recurrence
is one contiguous slice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine_kernels.compact import Mailbox
from refine_kernels.delta_rule.inside import Arrived

PIECE_TOKENS = 1024
_EPS = 1e-6


class _Piece(NamedTuple):
    """What forward and backward both need of a piece of chunks, all ``[P, B*H, C, ...]``."""

    q: Tensor  # normalised and scaled
    k: Tensor  # normalised
    v: Tensor
    beta: Tensor  # [P, B*H, C, 1]
    q_norm: Tensor | None  # what q was multiplied by (scale left out), [P, B*H, C, 1]
    k_norm: Tensor | None
    decay: Tensor | None  # running sum of log_decay inside the chunk, [P, B*H, C, 1]


def _to_chunks(x: Tensor, start: int, stop: int, chunk: int, dtype: torch.dtype) -> Tensor:
    """Tokens ``start..stop-1`` of ``[B, T, H, D]`` as ``[P, B*H, C, D]``, zeros after the end."""
    batch, _, heads, width = x.shape
    x = x[:, start:stop].to(dtype)
    missing = -(stop - start) % chunk
    if missing:
        x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, missing))
    x = x.unflatten(1, (-1, chunk)).permute(1, 0, 3, 2, 4)
    return x.reshape(x.shape[0], batch * heads, chunk, width)


def _from_chunks(x: Tensor, out: Tensor, start: int, stop: int) -> None:
    """The inverse of :func:`_to_chunks`, written into ``out [B, T, H, D]``."""
    batch, _, heads, width = out.shape
    tokens = x.view(x.shape[0], batch, heads, -1, width).permute(1, 0, 3, 2, 4)
    out[:, start:stop] = tokens.reshape(batch, -1, heads, width)[:, : stop - start]


def _load_piece(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
    span: tuple[int, int],
    chunk: int,
    scale: float,
    normalize_qk: bool,
    dtype: torch.dtype,
) -> _Piece:
    q, k, v, beta, log_decay = inputs
    q, k, v = (_to_chunks(x, *span, chunk, dtype) for x in (q, k, v))
    beta = _to_chunks(beta.unsqueeze(-1), *span, chunk, dtype)
    q_norm = k_norm = decay = None
    if normalize_qk:
        q_norm = torch.rsqrt(torch.linalg.vecdot(q, q).unsqueeze(-1) + _EPS)
        k_norm = torch.rsqrt(torch.linalg.vecdot(k, k).unsqueeze(-1) + _EPS)
        q, k = q * (q_norm * scale), k * k_norm
    else:
        q = q * scale
    if log_decay is not None:
        decay = _to_chunks(log_decay.unsqueeze(-1), *span, chunk, dtype).cumsum(-2)
    return _Piece(q, k, v, beta, q_norm, k_norm, decay)


def _pair_decay(decay: Tensor) -> Tensor:
    """``exp(G_i - G_j)`` for ``j <= i``, 0 above the diagonal."""
    difference = decay - decay.mT
    upper = torch.ones_like(difference, dtype=torch.bool).triu(1)
    return difference.masked_fill_(upper, -torch.inf).exp_()


class ChunkedDeltaRule(torch.autograd.Function):
    """Forward and backward of the chunked delta rule.

    Besides the outputs it returns what the state at any position is made of: the state entering
    each chunk and the rows ``u`` that the chunk writes. Their gradients come by the mailbox.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        log_decay: Tensor | None,
        initial_state: Tensor,
        scale: float,
        normalize_qk: bool,
        chunk: int,
        mailbox: Mailbox,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Outputs ``[B,T,H,V]``, the last state ``[B,H,K,V]``, a handle, entering states and ``u``.

        ``states [n, B, H, K, V]`` and ``u [n, B, H, C, V]``, both without history.
        """
        batch, length, heads, value_width = v.shape
        key_width = k.shape[-1]
        dtype = initial_state.dtype
        num_chunks = -(-length // chunk)
        rows = batch * heads
        inputs = (q, k, v, beta, log_decay)
        output = torch.empty(batch, length, heads, value_width, dtype=v.dtype, device=v.device)
        states = initial_state.new_empty(num_chunks, rows, key_width, value_width)
        u_all = initial_state.new_empty(num_chunks, rows, chunk, value_width)
        needs_grad = any(ctx.needs_input_grad)
        inverses = initial_state.new_empty(num_chunks, rows, chunk, chunk) if needs_grad else None
        state = initial_state.reshape(rows, key_width, value_width)
        for span in _spans(length, chunk):
            piece = _load_piece(inputs, span, chunk, scale, normalize_qk, dtype)
            first = span[0] // chunk
            here = slice(first, first + piece.q.shape[0])
            inverse, within = _solve_piece(piece)
            if inverses is not None:
                inverses[here] = inverse
            q_in, k_in, k_out, keep = _decayed(piece)
            from_values = inverse @ (piece.beta * piece.v)
            from_state = inverse @ (piece.beta * k_in)
            k_out_t = k_out.mT
            for i in range(piece.q.shape[0]):
                n = first + i
                states[n] = state
                u = torch.baddbmm(from_values[i], from_state[i], state, alpha=-1, out=u_all[n])
                kept = state if keep is None else state * keep[i]
                state = torch.baddbmm(kept, k_out_t[i], u)
            chunks = q_in @ states[here]
            chunks += within @ u_all[here]
            _from_chunks(chunks, output, *span)
        ctx.save_for_backward(q, k, v, beta, log_decay, states, u_all, inverses)
        ctx.settings = (scale, normalize_qk, chunk)
        ctx.mailbox = mailbox
        ctx.set_materialize_grads(False)
        shape = (batch, heads)
        states, u_all = states.unflatten(1, shape), u_all.unflatten(1, shape)
        ctx.mark_non_differentiable(states, u_all)
        return output, state.unflatten(0, shape), state.new_empty(0), states, u_all

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v, beta, log_decay and initial_state."""
        d_output, d_final, d_handle = grads[:3]
        arrived = Arrived.of(ctx.mailbox.take(d_handle))
        q, k, v, beta, log_decay, states, u_all, inverses = ctx.saved_tensors
        scale, normalize_qk, chunk = ctx.settings
        batch, length, heads, _ = v.shape
        dtype = states.dtype
        inputs = (q, k, v, beta, log_decay)
        d_inputs = [None if x is None else x.new_empty(x.shape) for x in inputs]
        d_state = torch.zeros_like(states[0]) if d_final is None else d_final.flatten(0, 1)
        if d_output is None:
            d_output = torch.zeros_like(v)
        for span in reversed(_spans(length, chunk)):
            piece = _load_piece(inputs, span, chunk, scale, normalize_qk, dtype)
            first = span[0] // chunk
            here = slice(first, first + piece.q.shape[0])
            d_out = _to_chunks(d_output, *span, chunk, dtype)
            d_piece, d_state = _backward_piece(
                piece,
                scale,
                states[here],
                u_all[here],
                inverses[here],
                d_out,
                d_state,
                None if arrived is None else partial(arrived.add_chunks, first=first),
            )
            for target, gradient in zip(d_inputs, d_piece, strict=True):
                if target is not None and gradient is not None:
                    full = target if target.ndim == 4 else target.unsqueeze(-1)
                    _from_chunks(gradient, full, *span)
        if arrived is not None:
            d_k, d_log_decay = d_inputs[1], d_inputs[4]
            assert d_k is not None
            arrived.add_tokens(d_k, d_log_decay)
        return *d_inputs, d_state.unflatten(0, (batch, heads)), *(None,) * 4


def _spans(length: int, chunk: int) -> list[tuple[int, int]]:
    piece = max(chunk, PIECE_TOKENS // chunk * chunk)
    return [(s, min(s + piece, length)) for s in range(0, length, piece)]


def _solve_piece(piece: _Piece) -> tuple[Tensor, Tensor]:
    """``A^-1`` and ``tril(Q K^T)``, both with the decay between their tokens."""
    pairs = None if piece.decay is None else _pair_decay(piece.decay)
    mixing = piece.beta * (piece.k @ piece.k.mT)
    within = piece.q @ piece.k.mT
    if pairs is not None:
        mixing *= pairs
        within *= pairs
    identity = torch.eye(mixing.shape[-1], dtype=mixing.dtype, device=mixing.device)
    # Only what lies below the diagonal is read.
    inverse = torch.linalg.solve_triangular(
        mixing, identity.expand_as(mixing), upper=False, unitriangular=True
    )
    return inverse, within.tril_()


def _decayed(piece: _Piece) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Q and k as they meet the entering state, k as it enters the next one, and what is kept."""
    if piece.decay is None:
        return piece.q, piece.k, piece.k, None
    grow = piece.decay.exp()
    last = piece.decay[..., -1:, :]
    return piece.q * grow, piece.k * grow, piece.k * (last - piece.decay).exp(), last.exp()


def _backward_piece(
    piece: _Piece,
    scale: float,
    states: Tensor,
    u: Tensor,
    inverse: Tensor,
    d_out: Tensor,
    d_state: Tensor,
    add_given: Callable[[Tensor, Tensor], None] | None,
) -> tuple[tuple[Tensor | None, ...], Tensor]:
    """Gradients of a piece's inputs, and of the state that enters it. Names follow the README.

    ``add_given`` adds what came of states at positions to those of entering states and ``u``.
    """
    q, k, v, beta, q_norm, k_norm, decay = piece
    q_in, k_in, k_out, keep = _decayed(piece)
    pairs = None if decay is None else _pair_decay(decay)
    products = k @ k.mT
    within = q @ k.mT
    if pairs is not None:
        products *= pairs
        within *= pairs
    within.tril_()
    from_state = inverse @ (beta * k_in)

    d_within = (d_out @ u.mT).tril_()
    d_q_in = d_out @ states.mT
    d_u = within.mT @ d_out
    d_entering = q_in.mT @ d_out
    if add_given is not None:
        add_given(d_entering, d_u)
    d_next = torch.empty_like(states)
    from_state_t = from_state.mT
    for i in reversed(range(q.shape[0])):
        d_next[i] = d_state
        d_u[i].baddbmm_(k_out[i], d_state)
        kept = d_state if keep is None else d_state * keep[i]
        d_state = torch.baddbmm(kept, from_state_t[i], d_u[i], alpha=-1).add_(d_entering[i])

    inverse_t = inverse.mT
    d_beta_v = inverse_t @ d_u
    d_beta_k = inverse_t @ (d_u @ states.mT).neg_()
    from_values = u + from_state @ states
    d_mixing = d_beta_v @ from_values.mT
    d_mixing += d_beta_k @ from_state.mT
    d_mixing.neg_().tril_(-1)

    d_beta = (d_mixing * products).sum(-1, keepdim=True)
    d_beta += torch.linalg.vecdot(d_beta_v, v).unsqueeze(-1)
    d_beta += torch.linalg.vecdot(d_beta_k, k_in).unsqueeze(-1)
    d_v = beta * d_beta_v
    d_k_in = beta * d_beta_k
    d_k_out = u @ d_next.mT
    d_decay = None
    if decay is not None:
        last = torch.linalg.vecdot(d_k_out, k_out).unsqueeze(-1)
        pair_terms = d_mixing * products * beta + d_within * within
        d_decay = (
            pair_terms.sum(-1, keepdim=True)
            - pair_terms.sum(-2).unsqueeze(-1)
            + torch.linalg.vecdot(d_k_in, k_in).unsqueeze(-1)
            + torch.linalg.vecdot(d_q_in, q_in).unsqueeze(-1)
            - last
        )
        assert keep is not None
        d_decay[..., -1:, :] += last.sum(-2, keepdim=True)
        d_decay[..., -1:, :] += (d_next * states).sum((-1, -2))[..., None, None] * keep
        d_decay = d_decay.flip(-2).cumsum(-2).flip(-2)
        grow = decay.exp()
        d_q_in, d_k_in = d_q_in * grow, d_k_in * grow
        d_k_out = d_k_out * (decay[..., -1:, :] - decay).exp()
        assert pairs is not None
        d_within *= pairs
        d_mixing *= pairs
    d_products = beta * d_mixing
    d_q = d_q_in.add_(d_within @ k)
    d_k = d_k_in.add_(d_k_out)
    d_k += (d_products + d_products.mT) @ k
    d_k += d_within.mT @ q
    if q_norm is not None and k_norm is not None:
        unit = q / scale
        d_q *= scale
        d_q = q_norm * (d_q - unit * torch.linalg.vecdot(unit, d_q).unsqueeze(-1))
        d_k = k_norm * (d_k - k * torch.linalg.vecdot(k, d_k).unsqueeze(-1))
    else:
        d_q *= scale
    return (d_q, d_k, d_v, d_beta, d_decay), d_state
