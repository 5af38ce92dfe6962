"""Drawing tokens one after the other from given states."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from refine_pl.backbones.base import FastWeightLM, State
from refine_pl.sampling import sample_tokens


class Decoded(NamedTuple):
    """Continuations of ``R`` rows by ``L`` tokens."""

    tokens: Tensor  # [R, L] int64
    logprobs: Tensor  # [R, L] float32 of the tokens
    target_logprobs: Tensor  # [R, L] float32 of the targets, after the row's own earlier tokens
    hidden: Tensor  # [R, L, D] after reading each token


@torch.no_grad()
def decode(
    policy: FastWeightLM, hidden: Tensor, state: State, targets: Tensor, uniform: Tensor
) -> Decoded:
    """Sample ``L`` tokens for each row.

    Args:
        policy: the model that samples.
        hidden: ``[R, D]`` final hidden states of the rows' last tokens.
        state: the rows' states, ``R`` of them.
        targets: ``[R, L]`` whose log-probabilities are wanted beside those of the samples.
        uniform: ``[R, L]`` in [0, 1), float64.
    """
    tokens, logprobs, target_logprobs, hiddens = [], [], [], []
    for j in range(targets.shape[1]):
        logits = policy.head(hidden, logits=True).logits
        token = sample_tokens(logits, uniform[:, j])
        wanted = torch.stack([token, targets[:, j]], -1)
        picked = logits.log_softmax(-1).gather(-1, wanted)
        output = policy(token[:, None], state=state)
        state, hidden = output.state, output.hidden[:, 0]
        tokens.append(token)
        logprobs.append(picked[:, 0])
        target_logprobs.append(picked[:, 1])
        hiddens.append(hidden)
    return Decoded(
        torch.stack(tokens, 1),
        torch.stack(logprobs, 1).float(),
        torch.stack(target_logprobs, 1).float(),
        torch.stack(hiddens, 1),
    )
