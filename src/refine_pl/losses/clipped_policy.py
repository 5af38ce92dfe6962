"""The policy term of the loss: PPO's clipped objective with a dual clip."""

from __future__ import annotations

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor

from refine_pl.errors import ConfigError

MAX_LOG_RATIO = 20.0
"""Nats; beyond it the ratio is held constant, so that exp cannot overflow."""


def mask_inputs(loss_mask: Tensor, *inputs: Tensor) -> list[Tensor]:
    """``inputs`` in float32 or float64, broadcast to ``loss_mask``, and 0 where it is false.

    Replacing the inputs, instead of multiplying the loss by 0, keeps what masked entries hold (NaN
    included) out of the loss and out of the gradient.
    """
    wide = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in inputs]
    return [
        torch.where(loss_mask, x, torch.zeros((), dtype=x.dtype, device=x.device)) for x in wide
    ]


class ClippedPolicy:
    """max(-A r, -A clip(r, 1 - low, 1 + high)); where A < 0, the minimum of that and -dual_clip A.

    ``r = exp(clamp(logprob - old_logprob, -20, 20))`` is the ratio of a token's probability now to
    the one that it was sampled with (paper, section 3; dual clip: arXiv 1912.09729).

    Args:
        clip_ratio_low: how far below 1 the ratio may fall before the gradient stops.
        clip_ratio_high: how far above 1 it may rise.
        dual_clip: bound of the loss for bad rollouts, in units of the advantage; above 1, or
            ``None`` for no bound.
    """

    def __init__(
        self,
        clip_ratio_low: NonNegativeFloat = 0.2,
        clip_ratio_high: NonNegativeFloat = 0.2,
        dual_clip: PositiveFloat | None = 3.0,
    ) -> None:
        if dual_clip is not None and dual_clip <= 1:
            raise ConfigError(
                f"dual_clip is {dual_clip}",
                where="ClippedPolicy",
                allowed="a number above 1, or null for no bound",
            )
        self.clip_ratio_low = clip_ratio_low
        self.clip_ratio_high = clip_ratio_high
        self.dual_clip = dual_clip

    def __call__(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, loss_mask: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sums over the tokens of ``loss_mask``; what masked entries hold changes nothing.

        Args:
            logprobs: ``[B, S, N, L]`` nats, of the rollout tokens now, with gradients.
            old_logprobs: ``[B, S, N, L]`` nats, when they were sampled.
            advantages: ``[B, S, N, 1]``, or anything that broadcasts to the others.
            loss_mask: ``[B, S, N, L]`` bool, the tokens that count.

        Returns:
            The loss, a scalar with gradients, and detached sums for the log: ``policy_loss``;
            ``ratio``; ``clip_fraction``, tokens where the clipped term is the larger one;
            ``dual_clip_fraction``, tokens where the dual clip binds; ``approx_kl``, of
            ``old_logprob - logprob``, in nats.
        """
        new, old, advantage = mask_inputs(
            loss_mask, logprobs, old_logprobs.detach(), advantages.detach()
        )
        log_ratio = (new - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        ratio = log_ratio.exp()
        plain = -advantage * ratio
        clipped = -advantage * ratio.clamp(1 - self.clip_ratio_low, 1 + self.clip_ratio_high)
        losses = torch.maximum(plain, clipped)
        bounded = torch.zeros_like(loss_mask)
        if self.dual_clip is not None:
            bound = -self.dual_clip * advantage
            bounded = (advantage < 0) & (losses > bound)
            losses = torch.where(bounded, bound, losses)
        loss = losses.sum()
        sums = {
            "policy_loss": loss,
            "ratio": (ratio * loss_mask).sum(),
            "clip_fraction": (clipped > plain).to(loss.dtype).sum(),
            "dual_clip_fraction": bounded.to(loss.dtype).sum(),
            "approx_kl": -log_ratio.sum(),
        }
        return loss, {name: value.detach() for name, value in sums.items()}
