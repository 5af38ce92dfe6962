"""The clipped objective of PPO and GRPO, with a dual clip."""

from __future__ import annotations

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor

from refine_pl.errors import ConfigError
from refine_pl.losses.base import CountBy, LossSum, PolicyLoss, log_ratio, mask_inputs


class ClippedPolicy(PolicyLoss):
    """max(-A r, -A clip(r, 1 - low, 1 + high)); where A < 0, the minimum of that and -dual_clip A.

    ``r = exp(clamp(logprob - old_logprob, -20, 20))`` is the ratio of a token's probability now to
    the one that it was sampled with (paper, section 3; dual clip: arXiv 1912.09729).

    Args:
        clip_ratio_low: how far below 1 the ratio may fall before the gradient stops.
        clip_ratio_high: how far above 1 it may rise.
        dual_clip: bound of the loss for bad rollouts, in units of the advantage; above 1, or
            ``None`` for no bound.
        counts: what the mean over an optimizer step is taken over: all rollout ``tokens`` alike; or
            ``sequences``, all rollouts alike, each with the mean of its own tokens (GRPO's 1/|o|).
    """

    def __init__(
        self,
        clip_ratio_low: NonNegativeFloat = 0.2,
        clip_ratio_high: NonNegativeFloat = 0.2,
        dual_clip: PositiveFloat | None = 3.0,
        counts: CountBy = "tokens",
    ) -> None:
        super().__init__(counts)
        if dual_clip is not None and dual_clip <= 1:
            raise ConfigError(
                f"dual_clip is {dual_clip}",
                where="ClippedPolicy",
                allowed="a number above 1, or null for no bound",
            )
        self.clip_ratio_low = clip_ratio_low
        self.clip_ratio_high = clip_ratio_high
        self.dual_clip = dual_clip

    def loss(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, loss_mask: Tensor
    ) -> LossSum:
        """See :meth:`PolicyLoss.loss`.

        For the log, over tokens: ``ratio``; ``clip_fraction``, where the clipped term is the larger
        one; ``dual_clip_fraction``, where the dual clip binds; ``approx_kl``, the mean of
        ``old_logprob - logprob``, in nats.
        """
        new, old, advantage = mask_inputs(loss_mask, logprobs, old_logprobs, advantages)
        log_ratios = log_ratio(new, old)
        ratio = log_ratios.exp()
        plain = -advantage * ratio
        clipped = -advantage * ratio.clamp(1 - self.clip_ratio_low, 1 + self.clip_ratio_high)
        losses = torch.maximum(plain, clipped)
        bounded = torch.zeros_like(loss_mask)
        if self.dual_clip is not None:
            bound = -self.dual_clip * advantage
            bounded = (advantage < 0) & (losses > bound)
            losses = torch.where(bounded, bound, losses)
        tokens = loss_mask.sum()
        return LossSum(
            self.sum(losses, loss_mask),
            {
                "ratio": ((ratio * loss_mask).sum(), tokens),
                "clip_fraction": ((clipped > plain).to(losses.dtype).sum(), tokens),
                "dual_clip_fraction": (bounded.to(losses.dtype).sum(), tokens),
                "approx_kl": (-log_ratios.sum(), tokens),
            },
        )
