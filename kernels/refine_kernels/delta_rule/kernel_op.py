"""The delta rule by this package's Triton kernels: buffers, launches, gradients.

Three launches forward, six backward: the backward pass makes ``w``, ``u`` and the states again
rather than keep them. Kept are the inputs, ``A^-1``, norms and running sums of the decay.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine_kernels.backends import MAX_KEY_WIDTH
from refine_kernels.compact import Mailbox
from refine_kernels.delta_rule.inside import Arrived
from refine_kernels.launching import launch

CHUNK_SIZES = (16, 32, 64)


class Sizes(NamedTuple):
    """Of one call."""

    B: int
    T: int
    H: int
    K: int
    V: int
    C: int  # tokens of a chunk

    @property
    def N(self) -> int:
        """Chunks of a row."""
        return -(-self.T // self.C)


def chunk_of(chunk_size: int, key_width: int) -> int:
    """Tokens of a chunk: what was asked for, or less where keys are wide.

    Raises:
        ValueError: keys that are too wide, or another size than 16, 32 and 64.
    """
    if key_width > MAX_KEY_WIDTH:
        raise ValueError(f"keys of width {key_width}; the Triton kernels take {MAX_KEY_WIDTH}")
    if chunk_size not in CHUNK_SIZES:
        raise ValueError(f"chunks of {chunk_size} tokens; the Triton kernels take {CHUNK_SIZES}")
    return min(chunk_size, 64 if key_width <= 128 else 32)


def _power(width: int) -> int:
    return max(16, 1 << (width - 1).bit_length())


# Columns of the state that a program takes, warps and pipeline stages: found by compiling for
# sm_80, sm_90 and sm_100, so that registers suffice. Not timed on a GPU.
_PLANS = {
    "prepare": (64, 8, 2),
    "recur": (32, 4, 2),
    "outputs": (64, 4, 2),
    "written_back": (64, 4, 2),
    "recur_back": (32, 8, 2),
    "pairs_back": (64, 8, 2),
    "queries_keys_back": (32, 8, 2),
}
_IN_TILES = ("outputs", "written_back")  # a program for each chunk and part of the values


def _start(name: str, sizes: Sizes, flags: dict[str, Any], **arguments: Any) -> None:
    """One launch of the kernel called ``name``."""
    from refine_kernels.delta_rule import kernels_backward, kernels_forward

    module = kernels_backward if name.endswith("back") else kernels_forward
    columns, warps, stages = _PLANS[name]
    halved = sizes.K > 128 if name.startswith("recur") else sizes.K <= 64
    if halved and name in ("recur", "recur_back", "queries_keys_back"):
        columns //= 2
    columns = min(columns, _power(sizes.V))
    tiles = -(-sizes.V // columns)
    rows = sizes.B * sizes.H
    if name.startswith("recur"):
        grid: tuple[int, ...] = (rows, tiles)
    else:
        grid = (rows * sizes.N, tiles) if name in _IN_TILES else (rows * sizes.N,)
    constants = {name: getattr(sizes, name) for name in "HKVC"}
    constants |= {"BK": _power(sizes.K), "BV": columns, **flags}
    arguments |= {"T": sizes.T, "N": sizes.N}
    options = {"num_warps": warps, "num_stages": stages}
    launch(getattr(module, name), grid, arguments, constants, options)


class _Inputs(NamedTuple):
    q: Tensor  # [B, T, H, K]
    k: Tensor
    v: Tensor  # [B, T, H, V]
    beta: Tensor  # [B, T, H]
    log_decay: Tensor | None


class _Kept(NamedTuple):
    """Small beside the inputs; shapes in ``kernels_forward.py``."""

    inverse: Tensor
    norm_k: Tensor | None
    norm_q: Tensor | None
    decay: Tensor | None


class _States(NamedTuple):
    """What the recurrence makes."""

    w: Tensor
    u: Tensor
    states: Tensor
    final: Tensor
    at_slot: Tensor | None
    u_at_slot: Tensor | None


def _recurrence(
    x: _Inputs, kept: _Kept, initial: Tensor, slot: Tensor | None, num_slots: int, emit: int,
    sizes: Sizes, solve: bool,
) -> _States:  # fmt: skip
    """``w``, then ``u`` and the states. ``solve``: fill what is kept; else read it."""
    B, _, H, K, V, C = sizes
    flags = {"NORMALIZE": kept.norm_k is not None, "DECAY": kept.decay is not None}
    w, from_values, u = torch.empty_like(x.k), torch.empty_like(x.v), torch.empty_like(x.v)
    _start(
        "prepare", sizes, flags | {"SOLVE": solve}, k=x.k, v=x.v, beta=x.beta,
        log_decay=x.log_decay, inverse=kept.inverse, norm_k=kept.norm_k, decay=kept.decay,
        w=w, from_values=from_values,
    )  # fmt: skip
    states = x.k.new_empty(B * H, sizes.N, K, V)
    final = torch.empty_like(initial)
    at_slot = initial.new_empty(num_slots, H, K, V) if emit else None
    u_at_slot = initial.new_empty(num_slots, H, C, V) if emit == 2 else None
    _start(
        "recur", sizes, flags | {"EMIT": emit}, k=x.k, w=w, from_values=from_values,
        norm_k=kept.norm_k, decay=kept.decay, initial=initial, slot=slot, u=u, states=states,
        final=final, at_slot=at_slot, u_at_slot=u_at_slot,
    )  # fmt: skip
    return _States(w, u, states, final, at_slot, u_at_slot)


class TritonDeltaRule(torch.autograd.Function):
    """Forward and backward by Triton kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        log_decay: Tensor | None,
        initial_state: Tensor,
        slot: Tensor | None,
        settings: tuple[float, bool, int, int, int],
        mailbox: Mailbox,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """Read whole rows; states where ``slot`` says so.

        Args:
            ctx: of autograd.
            q: ``[B, T, H, K]``.
            k: ``[B, T, H, K]``.
            v: ``[B, T, H, V]``.
            beta: ``[B, T, H]``.
            log_decay: ``[B, T, H]`` or None.
            initial_state: ``[B, H, K, V]`` float32.
            slot: ``[B, N]`` int32, where the state that enters a chunk is wanted, or -1.
            settings: scale, normalize_qk, chunk, number of slots, and what is wanted at them: 1
                states, 2 also ``u``.
            mailbox: that the gradients of what was taken at slots come by.

        Returns:
            Outputs ``[B, T, H, V]``, the last state, a handle, and without history: the states at
            the slots ``[slots, H, K, V]`` and ``u`` there ``[slots, H, C, V]``, float32. Slots that
            no chunk names hold anything.
        """
        scale, normalize, chunk, num_slots, emit = settings
        x = _Inputs(q.contiguous(), k.contiguous(), v.contiguous(), beta.contiguous(), log_decay)
        if log_decay is not None:
            x = x._replace(log_decay=log_decay.contiguous())
        batch, length, heads, width = k.shape
        sizes = Sizes(batch, length, heads, width, v.shape[-1], chunk)
        rows, padded = batch * heads, sizes.N * chunk

        def line(wanted: bool) -> Tensor | None:
            return initial_state.new_empty(rows, padded) if wanted else None

        inverse = k.new_empty(rows, sizes.N, chunk, chunk)
        kept = _Kept(inverse, line(normalize), line(normalize), line(log_decay is not None))
        initial = initial_state.contiguous()
        made = _recurrence(x, kept, initial, slot, num_slots, emit, sizes, solve=True)
        output = torch.empty_like(x.v)
        flags = {"NORMALIZE": normalize, "DECAY": log_decay is not None}
        _start(
            "outputs", sizes, flags, q=x.q, k=x.k, norm_k=kept.norm_k, norm_q=kept.norm_q,
            decay=kept.decay, states=made.states, u=made.u, output=output, scale=scale,
        )  # fmt: skip
        ctx.save_for_backward(*x, *kept, initial)
        ctx.settings, ctx.sizes, ctx.mailbox = settings, sizes, mailbox
        ctx.set_materialize_grads(False)
        given = [x for x in (made.at_slot, made.u_at_slot) if x is not None]
        ctx.mark_non_differentiable(*given)
        handle = initial.new_empty(0)
        return output, made.final, handle, made.at_slot, made.u_at_slot

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v, beta, log_decay and initial_state."""
        saved = ctx.saved_tensors
        x, kept, initial = _Inputs(*saved[:5]), _Kept(*saved[5:9]), saved[9]
        scale, normalize = ctx.settings[:2]
        sizes: Sizes = ctx.sizes
        d_output, d_final = (None if d is None else d.contiguous() for d in grads[:2])
        arrived = Arrived.of(ctx.mailbox.take(grads[2]))
        made = _recurrence(x, kept, initial, None, 0, 0, sizes, solve=False)
        if d_output is None:
            d_output = torch.zeros_like(x.v)
        if d_final is None:
            d_final = torch.zeros_like(initial)
        given = None if arrived is None else _Given.of(arrived, sizes.N)
        d_u, d_next, d_initial = _back_to_states(
            x, kept, made, (d_output, d_final), given, scale, sizes
        )
        pairs = x.k.new_empty(2, *kept.inverse.shape)
        p, d_q, d_k, d_v = (torch.empty_like(y) for y in (x.v, x.q, x.k, x.v))
        d_beta, d_log_decay = torch.empty_like(x.beta), None
        d_strength = initial.new_empty(sizes.B * sizes.H, sizes.N * sizes.C)
        d_decay = None
        if x.log_decay is not None:
            d_log_decay, d_decay = torch.empty_like(x.log_decay), torch.empty_like(d_strength)
        flags = {"NORMALIZE": normalize, "DECAY": kept.decay is not None}
        lines = {"norm_k": kept.norm_k, "norm_q": kept.norm_q, "decay": kept.decay}
        _start(
            "pairs_back", sizes, flags, q=x.q, k=x.k, v=x.v, beta=x.beta, inverse=kept.inverse,
            **lines, d_output=d_output, u=made.u, d_u=d_u, d_v=d_v, p=p, pairs=pairs,
            d_beta=d_strength, d_decay=d_decay, scale=scale,
        )  # fmt: skip
        _start(
            "queries_keys_back", sizes, flags, q=x.q, k=x.k, beta=x.beta, **lines,
            states=made.states, d_next=d_next, d_output=d_output, u=made.u, p=p, pairs=pairs,
            d_beta=d_strength, d_decay=d_decay, d_q=d_q, d_k=d_k, d_strength=d_beta,
            d_log_decay=d_log_decay, scale=scale,
        )  # fmt: skip
        if arrived is not None:
            arrived.add_tokens(d_k, d_log_decay)
        return d_q, d_k, d_v, d_beta, d_log_decay, d_initial, None, None, None


def slots_of(index: Tensor, num_chunks: int) -> tuple[Tensor, Tensor]:
    """A slot for every chunk that is named, one for all that name it.

    Args:
        index: chunks ``[B, S]``.
        num_chunks: of a row, ``N``.

    Returns:
        ``[B, N]`` int32, the slot of each chunk or -1; and those of the names ``[B, S]``.
    """
    batch, count = index.shape
    named = torch.zeros(batch, num_chunks, dtype=torch.int64, device=index.device)
    named = named.scatter(1, index, 1)
    row = torch.arange(batch, device=index.device)[:, None] * count
    slot = torch.where(named > 0, named.cumsum(1) - 1 + row, -1)
    return slot.to(torch.int32), slot.gather(1, index)


class _Given(NamedTuple):
    """Gradients of the states that were taken, a slot for each chunk that has some."""

    slot: Tensor  # [B, N] int32
    d_at_slot: Tensor  # [slots, H, K, V]
    d_u_at_slot: Tensor  # [slots, H, C, V]

    @classmethod
    def of(cls, arrived: Arrived, num_chunks: int) -> _Given:
        slot, place = slots_of(arrived.chunk, num_chunks)
        both = (arrived.d_entering, arrived.d_u)
        summed = (torch.zeros_like(d).index_add_(0, place.flatten(), d) for d in both)
        return cls(slot, *summed)


def _back_to_states(
    x: _Inputs, kept: _Kept, made: _States, grads: tuple[Tensor, Tensor], given: _Given | None,
    scale: float, sizes: Sizes,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``d_u``, ``d_next`` and the gradient of the initial state."""
    d_output, d_final = grads
    emit = 0 if given is None else 2
    slot, d_at_slot, d_u_at_slot = given or (None, None, None)
    flags = {
        "NORMALIZE": kept.norm_k is not None, "DECAY": kept.decay is not None, "EMIT": emit
    }  # fmt: skip
    both: dict[str, Any] = {
        "q": x.q,
        "k": x.k,
        "norm_k": kept.norm_k,
        "norm_q": kept.norm_q,
        "decay": kept.decay,
    }
    both |= {"d_output": d_output, "slot": slot, "scale": scale}
    d_from_output, d_u = torch.empty_like(x.v), torch.empty_like(x.v)
    _start("written_back", sizes, flags, **both, d_u_at_slot=d_u_at_slot, d_u=d_from_output)
    d_next, d_initial = torch.empty_like(made.states), torch.empty_like(d_final)
    _start(
        "recur_back", sizes, flags, **both, w=made.w, d_from_output=d_from_output,
        d_final=d_final, d_at_slot=d_at_slot, d_u=d_u, d_next=d_next, d_initial=d_initial,
    )  # fmt: skip
    return d_u, d_next, d_initial
