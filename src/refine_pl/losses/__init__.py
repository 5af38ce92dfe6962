"""Losses: the terms of the update, as functions of log-probabilities."""

from refine_pl.losses.base import LossSum, PolicyLoss, Sums, mask_inputs
from refine_pl.losses.clipped_policy import ClippedPolicy
from refine_pl.losses.clipped_weights import ClippedWeights
from refine_pl.losses.kl import kl_to_reference
from refine_pl.losses.ntp import count_ntp_tokens, ntp_targets
from refine_pl.losses.reinforce import Reinforce
from refine_pl.losses.sequence_ratio import SequenceRatio

__all__ = [
    "ClippedPolicy",
    "ClippedWeights",
    "LossSum",
    "PolicyLoss",
    "Reinforce",
    "SequenceRatio",
    "Sums",
    "count_ntp_tokens",
    "kl_to_reference",
    "mask_inputs",
    "ntp_targets",
]
