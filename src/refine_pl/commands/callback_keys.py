"""The callbacks that have keys of their own at the top of a configuration.

Each parameter of the function is a key. ``recorder: {every_n_iterations: 20}`` names what is other
than usual, ``recorder: false`` turns one off.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from refine_pl.callbacks import (
    Evaluation,
    ProgressBar,
    RandomState,
    RolloutRecorder,
    RunSummary,
    Throughput,
)
from refine_pl.training.phases import Phase
from refine_pl.training.schedule import Schedule

# Named, not made, so that no two runs share one; ``Any``, because the types say what may be given.
_PROGRESS: Any = {"class_path": "refine_pl.callbacks.ProgressBar"}
_THROUGHPUT: Any = {"class_path": "refine_pl.callbacks.Throughput"}
_RECORDER: Any = {"class_path": "refine_pl.callbacks.RolloutRecorder"}
_RANDOM_STATE: Any = {"class_path": "refine_pl.callbacks.RandomState"}
_SUMMARY: Any = {"class_path": "refine_pl.callbacks.RunSummary"}
_EVALUATION: Any = {"class_path": "refine_pl.callbacks.Evaluation"}
_CHECKPOINT: Any = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"filename": "{step}", "save_top_k": -1, "save_last": True},
}


def training_callbacks(
    phase: Phase | None = None,
    throughput: Throughput | bool = _THROUGHPUT,
    progress: ProgressBar | bool = _PROGRESS,
    recorder: RolloutRecorder | bool = _RECORDER,
    random_state: RandomState | bool = _RANDOM_STATE,
    summary: RunSummary | bool = _SUMMARY,
    schedule: Schedule | None = None,
    checkpoint: ModelCheckpoint | bool = _CHECKPOINT,
) -> list[Callback | bool | None]:
    """Callbacks of a training run.

    Args:
        phase: what a batch is made into; mid-training if left out.
        throughput: tokens and rollouts per second, and memory.
        progress: the progress bar.
        recorder: keeps some rollouts with their rewards.
        random_state: keeps the global random generators in checkpoints.
        summary: the numbers of every validation, and a table at the end.
        schedule: named stages with settings of their own.
        checkpoint: when checkpoints are saved; after each validation, and all are kept.
    """
    return [phase, throughput, progress, recorder, random_state, summary, schedule, checkpoint]


TRAINING_KEYS = tuple(inspect.signature(training_callbacks).parameters)


def evaluation_callbacks(
    evaluation: Evaluation = _EVALUATION,
    phase: Phase | None = None,
    progress: ProgressBar | bool = _PROGRESS,
) -> list[Callback | bool | None]:
    """Callbacks of a run that answers.

    Args:
        evaluation: scores the answers and writes them.
        phase: what happens before a batch is answered: nothing, or test-time training.
        progress: the progress bar.
    """
    return [phase, evaluation, progress]


def without_replaced(
    own: Sequence[Callback | bool | None], given: Sequence[Callback]
) -> list[Callback]:
    """Those of ``own`` that are on, unless ``trainer.callbacks`` has one of the same kind.

    Args:
        own: callbacks of keys.
        given: what ``trainer.callbacks`` names.
    """
    return [c for c in own if isinstance(c, Callback) and not _is_replaced(c, given)]


def _is_replaced(own: Callback, given: Sequence[Callback]) -> bool:
    if isinstance(own, Phase | Schedule):  # never there unless asked for
        return False
    line = type(own).__mro__
    kind = line[line.index(Callback) - 1]  # right below Lightning's: any progress bar replaces ours
    return any(isinstance(other, kind) for other in given)
