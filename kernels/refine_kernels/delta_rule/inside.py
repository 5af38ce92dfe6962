"""From the state that enters a chunk to the state after some of its tokens.

Row ``i`` of a chunk's ``u`` depends on nothing after token ``i``; hence the state after ``r``
tokens of a chunk is the entering state plus ``K[:r]^T u[:r]``: one masked product, exact,
differentiable. Its gradients go back to the pass as rows of the chunks that positions lie in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from refine_kernels.compact import Letter, Mailbox, take
from refine_kernels.delta_rule.reference import l2_normalize
from refine_kernels.records import rows_of

# Chunks from one state that a coarse trail keeps to the next: fewer need more memory, more are
# longer to read again.
EVERY = 8


@dataclass(frozen=True, slots=True)
class Chunks:
    """Positions as chunks and tokens of them, all ``[B, S]``."""

    index: Tensor  # the chunk, the last one for what follows it
    used: Tensor  # its tokens before the position, 0 to C

    @classmethod
    def of(cls, positions: Tensor, length: int, chunk: int) -> Self:
        """Of ``positions [B, S]`` in rows of ``length`` tokens."""
        index = (positions // chunk).clamp(max=(length - 1) // chunk)
        return cls(index, positions - index * chunk)


def states_inside(
    entering: Tensor,
    u: Tensor,
    keys: Tensor,
    log_decay: Tensor | None,
    used: Tensor,
    normalize_qk: bool,
) -> Tensor:
    """The states after ``used [R]`` tokens of ``R`` chunks, ``[R, H, K, V]``, ``entering``'s type.

    Args:
        entering: each chunk's ``[R, H, K, V]``.
        u: what its tokens write, ``[R, H, C, V]``.
        keys: ``[R, C, H, K]``, not normalised.
        log_decay: ``[R, C, H]`` or None.
        used: tokens of the chunk that count, 0 to C.
        normalize_qk: divide the keys by their norms.
    """
    keys = keys.to(entering.dtype)
    if normalize_qk:
        keys = l2_normalize(keys)
    inside = torch.arange(keys.shape[1], device=used.device) < used[:, None]
    weight = inside.to(entering.dtype)[..., None]  # [R, C, 1]
    if log_decay is not None:
        total = (log_decay.to(entering.dtype) * weight).cumsum(1)  # stays as it is after `used`
        last = total[:, -1:]
        weight = weight * (last - total).exp()
        entering = entering * last.squeeze(1).exp()[..., None, None]
    # What comes after the position may hold anything.
    u = torch.where(inside[:, None, :, None], u, 0)
    return entering + (keys * weight[..., None]).permute(0, 2, 3, 1) @ u


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass over rows leaves for the states at positions."""

    k: Tensor  # [B, T, H, K] as they were given, without history
    log_decay: Tensor | None  # [B, T, H]
    normalize_qk: bool
    handle: Tensor
    mailbox: Mailbox

    @classmethod
    def of(
        cls, k: Tensor, log_decay: Tensor | None, normalize_qk: bool, handle: Tensor, mail: Mailbox
    ) -> Self:
        """Of the inputs; gradients go by the ``mail`` of the operation that the handle is of."""
        decay = None if log_decay is None else log_decay.detach()
        return cls(k.detach(), decay, normalize_qk, handle, mail)

    def states(self, entering: Tensor, u: Tensor, chunks: Chunks) -> Tensor:
        """The states ``[B * S, H, K, V]`` in the middle of chunks.

        Args:
            entering: the chunks' ``[B * S, H, K, V]``, without history.
            u: what their tokens write, ``[B * S, H, C, V]``, likewise.
            chunks: which ones they are, and how many of their tokens count.
        """
        length, chunk = self.k.shape[1], u.shape[2]
        row = torch.arange(len(chunks.index), device=chunks.index.device)[:, None, None]
        token = chunks.index[..., None] * chunk + torch.arange(chunk, device=row.device)
        token = (token.clamp(max=length - 1) + row * length).flatten(0, 1)  # [B * S, C]
        keys = rows_of(self.k, token)
        decay = None if self.log_decay is None else rows_of(self.log_decay, token)
        rows = take(self.handle, self.mailbox, (chunks.index, token), entering, u, keys, decay)
        entering, u, keys, decay = rows  # type: ignore[assignment]
        return states_inside(entering, u, keys, decay, chunks.used.flatten(), self.normalize_qk)


class Arrived(NamedTuple):
    """The gradients of all states that were taken from a pass: ``S`` of them for each row."""

    chunk: Tensor  # [B, S]
    token: Tensor  # [B * S * C] rows of keys and decay, with those of all rows counted on
    d_entering: Tensor  # [B * S, H, K, V]
    d_u: Tensor  # [B * S, H, C, V]
    d_keys: Tensor  # [B * S * C, H, K]
    d_decay: Tensor | None  # [B * S * C, H]

    @classmethod
    def of(cls, letters: list[Letter]) -> Arrived | None:
        """All letters as one; None if there are none."""
        if not letters:
            return None
        indices = [letter.places[0] for letter in letters]
        batch = len(indices[0])

        def joined(parts: list[Tensor]) -> Tensor:  # each [B * s, ...], to [B * S, ...]
            if len(parts) == 1:
                return parts[0]
            return torch.cat([x.unflatten(0, (batch, -1)) for x in parts], 1).flatten(0, 1)

        token = joined([letter.places[1] for letter in letters])
        entering, u, keys, decay = zip(*(letter.gradients for letter in letters), strict=True)
        return cls(
            torch.cat(indices, 1),
            token.flatten(),
            joined(list(entering)),
            joined(list(u)),
            joined(list(keys)).flatten(0, 1),
            None if decay[0] is None else joined(list(decay)).flatten(0, 1),
        )

    def add_tokens(self, d_k: Tensor, d_log_decay: Tensor | None) -> None:
        """Add to the inputs' gradients ``[B, T, H, ...]``, which are contiguous, in place."""
        d_k.view(-1, *d_k.shape[2:]).index_add_(0, self.token, self.d_keys.to(d_k.dtype))
        if d_log_decay is not None and self.d_decay is not None:
            flat = d_log_decay.view(-1, d_log_decay.shape[-1])
            flat.index_add_(0, self.token, self.d_decay.to(flat.dtype))

    def add_chunks(self, d_entering: Tensor, d_u: Tensor, first: int) -> None:
        """Add to the gradients ``[P, B * H, ...]`` of ``P`` chunks from the ``first`` on."""
        count, (batch, slots) = d_u.shape[0], self.chunk.shape
        local = (self.chunk - first).flatten()
        row = torch.arange(batch, device=local.device).repeat_interleave(slots)
        inside = (local >= 0) & (local < count)
        given = (self.d_entering, self.d_u)
        if local.device.type == "cpu":  # elsewhere how many there are would have to be waited for
            picked = inside.nonzero().flatten()
            local, row = local[picked], row[picked]
            given = (self.d_entering[picked], self.d_u[picked])
        else:
            local = local.clamp(0, count - 1)
            mask = inside[:, None, None, None]
            given = (torch.where(mask, self.d_entering, 0), torch.where(mask, self.d_u, 0))
        for target, rows in zip((d_entering, d_u), given, strict=True):
            flat = target.view(count * batch, -1, *target.shape[2:])
            flat.index_add_(0, local * batch + row, rows)
