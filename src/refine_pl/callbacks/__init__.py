"""Callbacks: the phases of the method, their schedule, and what a person sees of a run."""

from refine_pl.callbacks.phases import MidTraining, PhaseCallback
from refine_pl.callbacks.progress import ProgressBar
from refine_pl.callbacks.recorder import RolloutRecorder
from refine_pl.callbacks.rng import RandomState
from refine_pl.callbacks.schedule import Phase, PhaseSchedule
from refine_pl.callbacks.summary import RunSummary
from refine_pl.callbacks.throughput import Throughput

__all__ = [
    "MidTraining",
    "Phase",
    "PhaseCallback",
    "PhaseSchedule",
    "ProgressBar",
    "RandomState",
    "RolloutRecorder",
    "RunSummary",
    "Throughput",
]
