"""Importance weights that are clipped, while every token keeps its gradient."""

from __future__ import annotations

from jsonargparse.typing import NonNegativeFloat
from torch import Tensor

from refine_pl.losses.base import CountBy, LossSum, PolicyLoss, log_ratio, mask_inputs


class ClippedWeights(PolicyLoss):
    """-A w logprob, w = clip(ratio, 1 - low, 1 + high) without gradient: CISPO.

    A clipped token is weighted less, and not left out as :class:`ClippedPolicy` leaves it out
    (arXiv 2506.13585, Eq. 4 and 5).

    Args:
        clip_ratio_low: how far below 1 a weight may fall; 1, as in the paper, bounds nothing.
        clip_ratio_high: how far above 1 it may rise.
        counts: what the mean over an optimizer step is taken over: all rollout ``tokens`` alike; or
            ``sequences``, all rollouts alike, each with the mean of its own tokens.
    """

    def __init__(
        self,
        clip_ratio_low: NonNegativeFloat = 1.0,
        clip_ratio_high: NonNegativeFloat = 4.0,
        counts: CountBy = "tokens",
    ) -> None:
        super().__init__(counts)
        self.clip_ratio_low = clip_ratio_low
        self.clip_ratio_high = clip_ratio_high

    def loss(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, loss_mask: Tensor
    ) -> LossSum:
        """See :meth:`PolicyLoss.loss`.

        For the log, over tokens: ``ratio``; ``clip_fraction``, where the weight is not the ratio;
        ``approx_kl``, of ``old_logprob - logprob``, in nats.
        """
        new, old, advantage = mask_inputs(loss_mask, logprobs, old_logprobs, advantages)
        log_ratios = log_ratio(new, old).detach()
        ratio = log_ratios.exp()
        weight = ratio.clamp(1 - self.clip_ratio_low, 1 + self.clip_ratio_high)
        tokens = loss_mask.sum()
        return LossSum(
            self.sum(-advantage * weight * new, loss_mask),
            {
                "ratio": ((ratio * loss_mask).sum(), tokens),
                "clip_fraction": ((weight != ratio).to(ratio.dtype).sum(), tokens),
                "approx_kl": (-log_ratios.sum(), tokens),
            },
        )
