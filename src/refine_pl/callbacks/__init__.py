"""Callbacks: the phases of the method, their schedule, and what a person sees of a run."""

from refine_pl.callbacks.evaluation import Evaluation
from refine_pl.callbacks.progress import ProgressBar
from refine_pl.callbacks.recorder import RolloutRecorder
from refine_pl.callbacks.summary import RunSummary
from refine_pl.callbacks.throughput import Throughput
from refine_pl.callbacks.token_budget import TokenBudget
from refine_pl.training.phases import MidTraining, PhaseCallback, PostTraining
from refine_pl.training.random_state import RandomState
from refine_pl.training.schedule import Phase, PhaseSchedule
from refine_pl.training.test_time import TestTimeTraining

__all__ = [
    "Evaluation",
    "MidTraining",
    "Phase",
    "PhaseCallback",
    "PhaseSchedule",
    "PostTraining",
    "ProgressBar",
    "RandomState",
    "RolloutRecorder",
    "RunSummary",
    "TestTimeTraining",
    "Throughput",
    "TokenBudget",
]
