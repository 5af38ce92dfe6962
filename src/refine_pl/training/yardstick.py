"""A fixed yardstick: rollouts judged by the hidden states of a model that no update changes.

The similarity of hidden states of the model that is trained says little: training moves them. The
frozen copy is the policy as it was when the stage began.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from refine_pl.backbones.base import FastWeightLM
from refine_pl.records import Batch, Rollouts
from refine_pl.rollouts.gather import at_offsets


@torch.no_grad()
def judged_by(frozen: FastWeightLM, batch: Batch, rollouts: Rollouts) -> Rollouts:
    """The same rollouts with the hidden states that another model has when it reads them.

    Args:
        frozen: the other model.
        batch: the sequences that the rollouts start in.
        rollouts: tokens ``[B, S, N, L]``.
    """
    output = frozen(batch.tokens, batch.num_tokens, keep_trail=True)
    assert output.trail is not None
    tokens, positions = rollouts.tokens, rollouts.positions
    state = output.trail.at(positions.index).fork(tokens.shape[2])
    hidden = frozen(tokens.flatten(0, 2), state=state).hidden
    return replace(
        rollouts,
        hidden=hidden.view(*tokens.shape, -1),
        target_hidden=at_offsets(output.hidden, positions, 0, tokens.shape[3]),
    )


@torch.no_grad()
def copy_weights(source: FastWeightLM, target: FastWeightLM) -> None:
    """Give ``target`` the weights of ``source``, sharded in the same way if they are."""
    for name, value in target.named_parameters():
        value.data.copy_(source.get_parameter(name).data)
    for name, buffer in target.named_buffers():
        buffer.data.copy_(source.get_buffer(name).data)
