"""A rollout generator draws continuations, and says how to read them again with gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from refine_pl.backbones.base import FastWeightLM
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch, Positions, Prefill, Reading, RolloutPlan, Rollouts


class RolloutGenerator(nn.Module, ABC):
    """Draws rollouts and replays them in the update.

    The two sides belong together: how the prefix's state is made decides the cost of both.

    Attributes:
        joins: whether :meth:`follow` can read the rollouts after a pass over the sequences that
            drawing used too. Otherwise an update passes over them again (:meth:`replay`).
    """

    joins: ClassVar[bool] = False

    def check_device(self, device: torch.device) -> None:
        """Before a run: refuse settings that cannot be on a device, with a ConfigError."""

    @abstractmethod
    def generate(
        self,
        policy: FastWeightLM,
        prefill: Prefill,
        batch: Batch,
        positions: Positions,
        plan: RolloutPlan,
        generator: RowRandom,
    ) -> Rollouts:
        """Sample ``N`` continuations of ``L`` tokens from each position, without gradients."""

    @abstractmethod
    def replay(
        self, policy: FastWeightLM, batch: Batch, positions: Positions, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hidden states of the sequences and of the rollouts, differentiable.

        Args:
            policy: the model being optimised.
            batch: the sequences.
            positions: where the rollouts start, ``[B, S]``.
            tokens: ``[B, S, N, L]`` the rollouts' tokens.

        Returns:
            ``hidden [B, T, D]``, and ``rollout_hidden [B, S, N, L, D]``: the states that *predict*
            each rollout token (the first one is that of the prefix's last token).
        """

    def follow(
        self, policy: FastWeightLM, reading: Reading, positions: Positions, tokens: Tensor
    ) -> Tensor:
        """As :meth:`replay`, after a pass over the sequences that was made already.

        Args:
            policy: the model being optimised.
            reading: the pass; its trail is forked here.
            positions: where the rollouts start, ``[B, S]``.
            tokens: ``[B, S, N, L]`` the rollouts' tokens.

        Returns:
            ``rollout_hidden [B, S, N, L, D]``, differentiable through the pass.
        """
        raise NotImplementedError(f"{type(self).__name__} reads the sequences again")
