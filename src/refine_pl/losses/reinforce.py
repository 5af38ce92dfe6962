"""The plain policy gradient."""

from __future__ import annotations

from torch import Tensor

from refine_pl.losses.base import LossSum, PolicyLoss, log_ratio, mask_inputs


class Reinforce(PolicyLoss):
    """-A logprob: REINFORCE.

    Nothing is clipped, and nothing says that the policy has changed since it drew: use it with
    ``rollouts_per: minibatch``, where each update has rollouts of its own.

    Args:
        counts: what the mean over an optimizer step is taken over: all rollout ``tokens`` alike; or
            ``sequences``, all rollouts alike, each with the mean of its own tokens.
    """

    def loss(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, loss_mask: Tensor
    ) -> LossSum:
        """See :meth:`PolicyLoss.loss`.

        For the log, over tokens: ``approx_kl``, of ``old_logprob - logprob``, in nats; it should be
        0.
        """
        new, old, advantage = mask_inputs(loss_mask, logprobs, old_logprobs, advantages)
        approx_kl = -log_ratio(new, old).sum()
        return LossSum(
            self.sum(-advantage * new, loss_mask), {"approx_kl": (approx_kl, loss_mask.sum())}
        )
