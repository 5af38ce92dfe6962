"""Rollouts from forked states: the prefix is never read again."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from refine_kernels.host import to_device
from refine_pl.backbones.base import FastWeightLM, Forks
from refine_pl.errors import check_choice
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch, Positions, Prefill, Reading, RolloutPlan, Rollouts
from refine_pl.rollouts.base import RolloutGenerator
from refine_pl.rollouts.decode_graph import DecodeGraph, Decoder
from refine_pl.rollouts.gather import at_offsets


class Forked(RolloutGenerator):
    """Forks the state of the prefill at every position.

    Drawing costs ``L`` steps of decoding; the update reads sequences and rollouts in one pass, and
    its gradient flows through the forked states into the whole prefix. Where both happen under the
    same weights, one pass over the sequences serves both.

    Args:
        decode_graph: decode as a CUDA graph, which the host starts as a whole: ``auto`` where that
            works, ``always`` (what prevents it is an error), or ``never``.

    Raises:
        ConfigError: another word; with ``always`` what prevents a graph, by :meth:`check_device` or
            :meth:`generate`.
    """

    joins = True

    def __init__(self, decode_graph: DecodeGraph = "auto") -> None:
        super().__init__()
        check_choice("Forked", "decode_graph", decode_graph, get_args(DecodeGraph))
        self.decode_graph = decode_graph
        self.decode = Decoder()

    def check_device(self, device: torch.device) -> None:
        """Refuse ``always`` where there are no graphs."""
        if self.decode_graph == "always":
            self.decode.check_device(device)

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
        copies, length = shape[2:]
        uniform = to_device(generator.rand(*shape[1:]), batch.tokens.device)
        targets = at_offsets(batch.tokens, positions, 0, length)
        before = at_offsets(prefill.hidden, positions, -1, 1)  # [B, S, 1, D]
        drawn = self.decode(
            self.decode_graph,
            policy,
            before.expand(-1, -1, copies, -1).flatten(0, 2),
            prefill.trail.at(positions.index).fork(copies),
            targets[:, :, None].expand(shape).flatten(0, 2),
            uniform.flatten(0, 2),
        )
        return Rollouts(
            positions=positions,
            tokens=drawn.tokens.view(shape),
            targets=targets,
            old_logprobs=drawn.logprobs.view(shape),
            hidden=drawn.hidden.view(*shape, -1),
            target_hidden=at_offsets(prefill.hidden, positions, 0, length),
            target_logprobs=drawn.target_logprobs.view(shape),
        )

    def replay(
        self, policy: FastWeightLM, batch: Batch, positions: Positions, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hidden states of sequences and rollouts in one pass; see :class:`RolloutGenerator`."""
        copies, length = tokens.shape[2:]
        forks = None
        if length > 1:  # nothing is predicted from the last token
            forks = Forks(positions.index, tokens[..., :-1], positions.valid)
        output = policy(batch.tokens, batch.num_tokens, forks=forks)
        before = _before(output.hidden, positions, copies)
        if output.fork_hidden is None:
            return output.hidden, before
        return output.hidden, torch.cat([before, output.fork_hidden], 3)

    def follow(
        self, policy: FastWeightLM, reading: Reading, positions: Positions, tokens: Tensor
    ) -> Tensor:
        """Hidden states of rollouts after a pass; see :class:`RolloutGenerator`."""
        forks = None
        if tokens.shape[3] > 1:  # nothing is predicted from the last token
            forks = Forks(positions.index, tokens[..., :-1], positions.valid)
        hidden = reading.follow(forks)
        before = _before(reading.hidden, positions, tokens.shape[2])
        return before if hidden is None else torch.cat([before, hidden], 3)


def _before(hidden: Tensor, positions: Positions, copies: int) -> Tensor:
    """``[B, S, N, 1, D]``: of the prefixes' last tokens."""
    before = at_offsets(hidden, positions, -1, 1)[:, :, None]
    return before.expand(-1, -1, copies, -1, -1)
