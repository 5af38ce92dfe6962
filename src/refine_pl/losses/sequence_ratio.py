"""One ratio for a whole rollout."""

from __future__ import annotations

import torch
from jsonargparse.typing import NonNegativeFloat
from torch import Tensor

from refine_pl.losses.base import LossSum, PolicyLoss, log_ratio, mask_inputs


class SequenceRatio(PolicyLoss):
    """max(-A s, -A clip(s, 1 - low, 1 + high)), s = exp(mean over the rollout of log ratio): GSPO.

    The ratio of a whole rollout is clipped, as its reward is that of a whole rollout (arXiv
    2507.18071, Eq. 5 and 7). The mean over an optimizer step is taken over rollouts.

    Args:
        clip_ratio_low: how far below 1 the ratio may fall before the gradient stops. A mean over
            tokens varies less than each of them: the paper's bounds are small.
        clip_ratio_high: how far above 1 it may rise.
    """

    def __init__(
        self, clip_ratio_low: NonNegativeFloat = 3e-4, clip_ratio_high: NonNegativeFloat = 4e-4
    ) -> None:
        super().__init__("sequences")
        self.clip_ratio_low = clip_ratio_low
        self.clip_ratio_high = clip_ratio_high

    def loss(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, loss_mask: Tensor
    ) -> LossSum:
        """See :meth:`PolicyLoss.loss`; an advantage that differs within a rollout is averaged.

        For the log, over rollouts: ``ratio``, and ``clip_fraction``, where the clipped term is the
        larger one; over tokens: ``approx_kl``, of ``old_logprob - logprob``, in nats.
        """
        new, old, advantage = mask_inputs(loss_mask, logprobs, old_logprobs, advantages)
        log_ratios = log_ratio(new, old)
        lengths, real = loss_mask.sum(-1).clamp_min(1), loss_mask.any(-1)
        ratio = (log_ratios.sum(-1) / lengths).exp()
        advantage = advantage.sum(-1) / lengths
        plain = -advantage * ratio
        clipped = -advantage * ratio.clamp(1 - self.clip_ratio_low, 1 + self.clip_ratio_high)
        return LossSum(
            torch.maximum(plain, clipped).sum(),
            {
                "ratio": ((ratio * real).sum(), real.sum()),
                "clip_fraction": ((clipped > plain).to(ratio.dtype).sum(), real.sum()),
                "approx_kl": (-log_ratios.sum(), loss_mask.sum()),
            },
        )
