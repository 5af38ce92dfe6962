"""The optional term that keeps the policy near a frozen reference."""

from __future__ import annotations

from torch import Tensor

from refine_pl.losses.base import mask_inputs


def kl_to_reference(logprobs: Tensor, reference_logprobs: Tensor, loss_mask: Tensor) -> Tensor:
    """``sum of exp(d) - d - 1`` with ``d = reference_logprob - logprob``: the k3 estimator, nats.

    It estimates KL(policy || reference) from tokens that the policy sampled, and is never negative
    (Schulman, "Approximating KL Divergence", 2020).

    Args:
        logprobs: ``[B, S, N, L]`` nats, of the rollout tokens under the policy, with gradients.
        reference_logprobs: ``[B, S, N, L]`` nats, under the reference.
        loss_mask: ``[B, S, N, L]`` bool; what entries outside it hold changes nothing.

    Returns:
        The sum over the tokens of ``loss_mask``, a scalar with gradients.
    """
    policy, reference = mask_inputs(loss_mask, logprobs, reference_logprobs.detach())
    difference = reference - policy
    return (difference.expm1() - difference).sum()
