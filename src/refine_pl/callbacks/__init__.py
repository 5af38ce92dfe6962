"""Callbacks: what a person sees of a run."""

from refine_pl.callbacks.evaluation import Evaluation
from refine_pl.callbacks.progress import ProgressBar
from refine_pl.callbacks.recorder import RolloutRecorder
from refine_pl.callbacks.requeue import Requeue
from refine_pl.callbacks.summary import RunSummary
from refine_pl.callbacks.throughput import Throughput
from refine_pl.callbacks.token_budget import TokenBudget
from refine_pl.training.random_state import RandomState

__all__ = [
    "Evaluation",
    "ProgressBar",
    "RandomState",
    "Requeue",
    "RolloutRecorder",
    "RunSummary",
    "Throughput",
    "TokenBudget",
]
