"""Rollouts by running every prefix from its start: the reference that forks must equal."""

from __future__ import annotations

import torch
from torch import Tensor

from refine_pl.backbones.base import FastWeightLM
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch, Positions, Prefill, RolloutPlan, Rollouts
from refine_pl.rollouts.base import RolloutGenerator
from refine_pl.rollouts.decode import decode
from refine_pl.rollouts.gather import at_offsets
from refine_pl.sampling import sample_tokens


class Recompute(RolloutGenerator):
    """Runs each prefix as a sequence of its own: to sample, to score, and in the update.

    Args:
        use_cache: sample from the state after the prefix; otherwise run prefix and rollout again
            for every token.
        pad_to_full: pad every prefix to the length of the batch, as the released code does;
            otherwise to the longest prefix.
    """

    def __init__(self, use_cache: bool = True, pad_to_full: bool = False) -> None:
        super().__init__()
        self.use_cache = use_cache
        self.pad_to_full = pad_to_full

    @torch.no_grad()
    def generate(
        self,
        policy: FastWeightLM,
        prefill: Prefill,
        batch: Batch,
        positions: Positions,
        plan: RolloutPlan,
        generator: RowRandom,
    ) -> Rollouts:
        """Sample continuations; see :class:`RolloutGenerator`."""
        shape = (*positions.index.shape, plan.rollouts_per_position, plan.rollout_length)
        length = shape[3]
        uniform = generator.rand(*shape[1:]).to(batch.tokens.device).flatten(0, 2)
        targets = at_offsets(batch.tokens, positions, 0, length)
        wanted = targets[:, :, None].expand(shape)
        sample = self._sample_cached if self.use_cache else self._sample_uncached
        tokens = sample(policy, batch, positions, wanted, uniform)
        rows, prefix = self._rows(batch, positions, tokens)
        hidden = _after(policy(rows, prefix + length).hidden, prefix, length)
        hidden = hidden.view(*shape[:3], length + 1, -1)
        before = hidden[..., :-1, :].flatten(0, -2)
        return Rollouts(
            positions=positions,
            tokens=tokens,
            targets=targets,
            old_logprobs=policy.head(before, tokens.flatten()).logprob.view(shape),
            hidden=hidden[..., 1:, :],
            target_hidden=at_offsets(prefill.hidden, positions, 0, length),
            target_logprobs=policy.head(before, wanted.flatten()).logprob.view(shape),
        )

    def replay(
        self, policy: FastWeightLM, batch: Batch, positions: Positions, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hidden states of sequences and rollouts, each run anew; see :class:`RolloutGenerator`."""
        length = tokens.shape[-1]
        rows, prefix = self._rows(batch, positions, tokens)
        hidden = _after(policy(rows, prefix + length).hidden, prefix, length)[:, :-1]
        main = policy(batch.tokens, batch.num_tokens).hidden
        return main, hidden.view(*tokens.shape, -1)

    def _rows(self, batch: Batch, positions: Positions, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Each prefix with its rollout ``[B*S*N, width + L]``, and the prefix lengths."""
        shape = tokens.shape
        length = shape[3]
        # A position that is not valid has no prefix; one token stands in for it.
        prefix = positions.index.clamp(min=1)
        width = batch.tokens.shape[1] if self.pad_to_full else int(prefix.max())
        prefix = prefix[:, :, None].expand(shape[:3]).flatten()
        rows = batch.tokens[:, None, None, :width].expand(*shape[:3], width).flatten(0, 2)
        rows = torch.nn.functional.pad(rows, (0, length))
        index = prefix[:, None] + torch.arange(length, device=rows.device)
        return rows.scatter(1, index, tokens.flatten(0, 2)), prefix

    def _sample_cached(
        self,
        policy: FastWeightLM,
        batch: Batch,
        positions: Positions,
        targets: Tensor,
        uniform: Tensor,
    ) -> Tensor:
        copies, length = targets.shape[2:]
        rows, prefix = self._rows(batch, positions, targets[:, :, :1])
        output = policy(rows[:, :-length], prefix)
        before = _after(output.hidden, prefix, 0)[:, 0]
        drawn = decode(
            policy,
            before.repeat_interleave(copies, 0),
            output.state.repeat(copies),
            targets.flatten(0, 2),
            uniform,
        )
        return drawn.tokens.view(targets.shape)

    def _sample_uncached(
        self,
        policy: FastWeightLM,
        batch: Batch,
        positions: Positions,
        targets: Tensor,
        uniform: Tensor,
    ) -> Tensor:
        tokens = batch.tokens.new_zeros(targets.shape)
        for j in range(targets.shape[3]):
            rows, prefix = self._rows(batch, positions, tokens)
            hidden = _after(policy(rows, prefix + j).hidden, prefix + j, 0)[:, 0]
            logits = policy.head(hidden, logits=True).logits
            tokens[..., j] = sample_tokens(logits, uniform[:, j]).view(targets.shape[:3])
        return tokens


def _after(hidden: Tensor, prefix: Tensor, length: int) -> Tensor:
    """``hidden [R, W, D]`` of the prefix's last token and the ``length`` tokens after it."""
    index = prefix[:, None] - 1 + torch.arange(length + 1, device=hidden.device)
    return hidden[torch.arange(len(prefix), device=hidden.device)[:, None], index]
