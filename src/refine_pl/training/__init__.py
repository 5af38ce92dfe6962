"""Training: the engine that makes updates, the Lightning module around it, phases and stages.

The names below are loaded when they are first used: the engine needs no Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refine_pl.lazy import lazy_names

if TYPE_CHECKING:
    from refine_pl.training.counters import Counters
    from refine_pl.training.learning_rate import SequentialLR
    from refine_pl.training.module import RefineModule
    from refine_pl.training.phases import Phase, PostTraining
    from refine_pl.training.schedule import Schedule, Stage
    from refine_pl.training.settings import Settings
    from refine_pl.training.sizes import Processes, Sizes
    from refine_pl.training.test_time import TestTimeTraining
    from refine_pl.training.updater import Updater

__all__ = [
    "Counters",
    "Phase",
    "PostTraining",
    "Processes",
    "RefineModule",
    "Schedule",
    "SequentialLR",
    "Settings",
    "Sizes",
    "Stage",
    "TestTimeTraining",
    "Updater",
]

_HOMES = {
    "Counters": "counters",
    "Phase": "phases",
    "PostTraining": "phases",
    "Processes": "sizes",
    "RefineModule": "module",
    "Schedule": "schedule",
    "SequentialLR": "learning_rate",
    "Settings": "settings",
    "Sizes": "sizes",
    "Stage": "schedule",
    "TestTimeTraining": "test_time",
    "Updater": "updater",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
