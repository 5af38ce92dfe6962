"""Losses: the terms of the update, as pure functions of log-probabilities."""

from refine_pl.losses.base import LossSum, PolicyLoss, Sums, mask_inputs
from refine_pl.losses.clipped_policy import ClippedPolicy
from refine_pl.losses.kl import kl_to_reference
from refine_pl.losses.ntp import count_ntp_tokens, ntp_targets

__all__ = [
    "ClippedPolicy",
    "LossSum",
    "PolicyLoss",
    "Sums",
    "count_ntp_tokens",
    "kl_to_reference",
    "mask_inputs",
    "ntp_targets",
]
