"""The records that pass between the steps of the algorithm.

Letters: ``B`` sequences, ``T`` tokens, ``S`` positions per sequence (one per segment), ``N``
rollouts per position, ``L`` rollout tokens, ``D`` model width. Sequences are padded on the right;
what comes after ``num_tokens`` is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from refine_kernels.host import known_on_host, on_host

if TYPE_CHECKING:
    from refine_pl.backbones.base import Forks, OpenPass, StateTrail
    from refine_pl.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """How many rollouts are drawn, and how long they are. A schedule may change it during a run."""

    num_segments: int  # S
    rollouts_per_position: int  # N
    rollout_length: int  # L, tokens


class Rows:
    """A dataclass whose fields hold something for each row: tensors, tuples, such records, None."""

    __slots__ = ()

    def narrow(self, start: int, stop: int) -> Self:
        """Rows ``start`` to ``stop - 1``."""
        return self._each(lambda x: x.narrow(start, stop) if isinstance(x, Rows) else x[start:stop])

    def to(self, device: torch.device | str, **kwargs: Any) -> Self:
        """The same on ``device``; Lightning calls it."""
        return self._each(lambda x: x if isinstance(x, tuple) else x.to(device, **kwargs))

    def _each(self, function: Callable[[Any], Any]) -> Self:
        values = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return type(self)(*(None if value is None else function(value) for value in values))


@dataclass(slots=True)  # not frozen: Lightning sets the fields of a batch when it converts them
class Batch(Rows):
    """Sequences of token ids, padded on the right."""

    tokens: Tensor  # [B, T] int64
    num_tokens: Tensor  # [B] int64, real tokens of each row
    rows: tuple[int, ...]  # B numbers that name the rows within one update, over all processes
    documents: tuple[str, ...] = ()  # B names, for people

    @classmethod
    def from_texts(cls, texts: Sequence[str], tokenizer: Tokenizer) -> Batch:
        """Whole texts, a row each.

        Raises:
            ValueError: there are none, or one has no tokens.
        """
        encoded = [torch.tensor(ids, dtype=torch.int64) for ids in tokenizer.encode_batch(texts)]
        if not encoded or not all(map(len, encoded)):
            raise ValueError("a batch is made of texts of at least one token each")
        num_tokens = torch.tensor([len(ids) for ids in encoded])
        return cls(pad_sequence(encoded, batch_first=True), num_tokens, tuple(range(len(encoded))))

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def narrow(self, start: int, stop: int) -> Self:
        """Rows ``start`` to ``stop - 1``; their lengths stay known on the host."""
        part = self._each(lambda x: x[start:stop])
        known_on_host(part.num_tokens, on_host(self.num_tokens)[start:stop])
        return part

    def to(self, device: torch.device | str, **kwargs: Any) -> Self:
        """The same on ``device``; how long the rows are need not be read back from it."""
        moved = self._each(lambda x: x if isinstance(x, tuple) else x.to(device, **kwargs))
        known_on_host(moved.num_tokens, on_host(self.num_tokens))
        return moved


@dataclass(slots=True)
class Packs(Rows):
    """Short sequences in packs. A pack is a batch of its own, of sequences of similar length.

    It counts as one row where a batch is cut, and is read in one pass.
    """

    packs: tuple[Batch, ...]

    @property
    def num_tokens(self) -> Tensor:
        """Real tokens of every sequence, int64."""
        lengths = [pack.num_tokens for pack in self.packs]
        joined = torch.cat(lengths)
        known_on_host(joined, torch.cat([on_host(each) for each in lengths]))
        return joined

    def to(self, device: torch.device | str, **kwargs: Any) -> Self:
        """The same on ``device``."""
        return type(self)(tuple(pack.to(device, **kwargs) for pack in self.packs))

    def __len__(self) -> int:
        return len(self.packs)


@dataclass(frozen=True, slots=True)
class Prefill:
    """What one pass over the sequences leaves for the steps after it."""

    hidden: Tensor  # [B, T, D] after the final norm, the input of the head
    entropy: Tensor  # [B, T] float32, nats; [b, t] belongs to the token after x[0..t]
    trail: StateTrail  # gives the state after any number of tokens


@dataclass(slots=True)
class Reading:
    """One differentiable pass over the sequences, which drawing and the update share."""

    opened: OpenPass
    hidden: Tensor  # [B, T, D] after the final norm, the input of the head
    logprob: Tensor  # [B, T] float32, nats, of the next tokens; 0 where there is none
    entropy: Tensor  # [B, T] float32, nats, without gradients; as in Prefill

    def prefill(self) -> Prefill:
        """The same without gradients, for drawing."""
        assert self.opened.trail is not None, "rollouts have been read already"
        return Prefill(self.hidden.detach(), self.entropy, self.opened.trail)

    def follow(self, forks: Forks | None) -> Tensor | None:
        """Read rollouts after the pass; only then is the rest differentiable through the model.

        The trail is let go: it is the largest thing that an update holds, and what its backward
        pass needs of it is picked here.

        Returns:
            The forks' hidden states ``[B, S, N, L, D]``.
        """
        hidden, made = self.opened.close(forks, self.hidden, self.logprob)
        self.hidden, self.logprob = made
        return hidden


@dataclass(frozen=True, slots=True)
class Positions(Rows):
    """Where rollouts start. A position is the index of the first rollout token.

    ``S`` is what the selector made of the plan's segments; valid positions ascend within a row.
    """

    index: Tensor  # [B, S] int64; the prefix is x[0 .. index-1]
    valid: Tensor  # [B, S] bool; False where a row had no legal candidate

    def narrow(self, start: int, stop: int) -> Self:
        """Rows ``start`` to ``stop - 1``; a GPU is not waited for again to know them."""
        index = known_on_host(self.index[start:stop], on_host(self.index)[start:stop])
        return type(self)(index, self.valid[start:stop])


@dataclass(frozen=True, slots=True)
class Rollouts(Rows):
    """Sampled continuations beside the true ones.

    Entries that are not ``valid`` hold anything finite; token ids there are inside the vocabulary.
    """

    positions: Positions
    tokens: Tensor  # [B, S, N, L] int64, sampled
    targets: Tensor  # [B, S, L] int64, the true continuation
    old_logprobs: Tensor  # [B, S, N, L] float32, of the sampled tokens when they were sampled
    hidden: Tensor  # [B, S, N, L, D] final hidden state after reading each rollout token
    target_hidden: Tensor  # [B, S, L, D] final hidden state after reading each target token
    target_logprobs: Tensor
    # [B, S, N, L] float32: target token j after the prefix and the rollout's own first j-1 tokens

    @property
    def valid(self) -> Tensor:
        """``[B, S]`` bool."""
        return self.positions.valid

    @property
    def loss_mask(self) -> Tensor:
        """``[B, S, N, L]`` bool, the tokens that count in the loss."""
        return self.valid[:, :, None, None].expand(self.tokens.shape)


@dataclass(frozen=True, slots=True)
class Drawn(Rows):
    """Sequences with their rollouts, not yet judged."""

    batch: Batch
    rollouts: Rollouts
    entropy: Tensor  # [B, T] float32, nats, of the policy that drew the rollouts

    def __len__(self) -> int:
        return len(self.batch)


@dataclass(frozen=True, slots=True)
class Experience:
    """One batch with its rollouts, judged: all that the update needs."""

    batch: Batch
    rollouts: Rollouts
    reward_parts: dict[str, Tensor]  # each [B, S, N] float32, before its weight
    rewards: Tensor  # [B, S, N] float32, the weighted sum
    advantages: Tensor  # [B, S, N] float32
    entropy: Tensor  # [B, T] float32, nats, of the policy that drew the rollouts
