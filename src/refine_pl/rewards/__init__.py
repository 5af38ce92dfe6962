"""Rewards: how good rollouts are."""

from refine_pl.rewards.base import Reward
from refine_pl.rewards.edit_distance import EditDistance
from refine_pl.rewards.embedding_similarity import EmbeddingSimilarity
from refine_pl.rewards.exact_match import ExactMatch
from refine_pl.rewards.from_function import FromFunction
from refine_pl.rewards.log_likelihood import LogLikelihood
from refine_pl.rewards.weighted_sum import WeightedSum

__all__ = [
    "EditDistance",
    "EmbeddingSimilarity",
    "ExactMatch",
    "FromFunction",
    "LogLikelihood",
    "Reward",
    "WeightedSum",
]
