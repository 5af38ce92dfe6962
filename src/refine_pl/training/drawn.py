"""What is kept of rollouts between drawing and the update."""

from __future__ import annotations

from dataclasses import replace

import torch

from refine_pl.records import Batch, Experience, Positions, Rollouts
from refine_pl.refine_step import RefineStep


def without_rollouts(step: RefineStep, batch: Batch) -> Experience:
    """An experience without a valid position, for sequences that the model cannot read."""
    rows, device = len(batch), batch.tokens.device
    zero, one = torch.zeros(rows, 1, 1, device=device), batch.tokens.new_zeros(rows, 1, 1, 1)
    none = zero.new_zeros(rows, 1, 1, 1)
    positions = Positions(one[:, :, 0, 0], torch.zeros_like(one[:, :, 0, 0], dtype=torch.bool))
    rollouts = Rollouts(positions, one, one[:, :, 0], none, none[..., None], none, none)
    parts = dict.fromkeys(step.reward.parts(), zero)
    entropy = torch.zeros(batch.tokens.shape, device=device)
    return Experience(batch, rollouts, parts, zero, zero, entropy)


def without_hidden(experience: Experience) -> Experience:
    """The update does not need the rewards' inputs, and all of a batch's would wait for it."""
    none = experience.rewards.new_empty(0)
    rollouts = replace(experience.rollouts, hidden=none, target_hidden=none)
    return replace(experience, rollouts=rollouts)
