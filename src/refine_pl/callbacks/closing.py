"""The end of a run: a number of iterations that ends it, and a validation whatever ends it.

A run may break after its last iteration, in its last validation or while it saves. When it goes on
in its own folder, as the runs of a sweep do, what is missing is made up for; a checkpoint of
another run that has nothing left to train is refused.
"""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.utilities import _is_max_limit_reached

from refine_pl.callbacks.summary import RunSummary
from refine_pl.errors import ConfigError
from refine_pl.training.module import RefineModule
from refine_pl.training.run_place import goes_on_in_place
from refine_pl.training.run_validation import run_validation


class IterationLimit(Callback):
    """Stops a run after so many iterations, however many updates a batch makes.

    Args:
        iterations: over all resumed runs.
    """

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a checkpoint of another run that has nothing left to train.

        Raises:
            ConfigError: it has made so many iterations already.
        """
        assert isinstance(pl_module, RefineModule)
        if pl_module.iteration >= self.iterations and goes_on_in_place(trainer):
            trainer.should_stop = True
        elif pl_module.iteration >= self.iterations:
            raise ConfigError(
                f"nothing is left to train: the checkpoint has made {pl_module.iteration} "
                f"iterations, and iterations is {self.iterations}",
                where="iterations",
                allowed="more than the checkpoint has made; it counts those of the resumed run too",
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop after the last one."""
        assert isinstance(pl_module, RefineModule)
        if pl_module.iteration >= self.iterations:
            trainer.should_stop = True


class ClosingValidation(Callback):
    """Measures the model after the last batch, if nothing has done so and nothing will.

    A run may end by its updates (``trainer.max_steps``), its time, a budget or another callback, in
    the middle of an epoch or of a stage; Lightning validates after some of these only. The table at
    the end then compares the model as it was with the model as it is, and the checkpoint that
    follows a validation is that of the end. A run that goes on after its last batch is measured
    before its end, if it broke before it was.

    To be the last of a trainer's callbacks that may stop the run.
    """

    def __init__(self) -> None:
        self._measured: int | None = None  # iterations

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate if no batch follows, and the run was not measured as it is now."""
        assert isinstance(pl_module, RefineModule)
        if not goes_on_in_place(trainer) or not trainer.fit_loop.done:
            return
        pl_module.print(f"nothing is left to train after {trainer.ckpt_path}: the run is closed")
        if trainer.enable_validation and not _is_summed_up(trainer):
            run_validation(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that the model was measured as it is now."""
        assert isinstance(pl_module, RefineModule)
        self._measured = pl_module.iteration

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Validate if this was the last batch."""
        assert isinstance(pl_module, RefineModule)
        if not _ends_here(trainer) or self._measured == pl_module.iteration:
            return
        if trainer.enable_validation and not _lightning_validates(trainer):
            run_validation(trainer)


def check_something_was_trained(trainer: Trainer) -> None:
    """Refuse a resumed run that has come to its end without an iteration.

    Raises:
        ConfigError: the checkpoint has reached what the trainer is told to reach, and is not one
            of this very run, which was closed.
    """
    module = cast(RefineModule, trainer.lightning_module)
    if trainer.ckpt_path is None or trainer.limit_train_batches == 0:
        return
    if module.iteration != module.resumed_at or goes_on_in_place(trainer):
        return
    raise ConfigError(
        f"nothing was trained: {trainer.ckpt_path} has made {module.iteration} iterations, and "
        f"trainer.max_epochs is {trainer.max_epochs}, trainer.max_steps {trainer.max_steps}",
        where="--ckpt_path",
        allowed="a run that goes on for longer than its checkpoint did",
        way_out="a larger trainer.max_epochs; refine-pl validate measures it as it is",
    )


def _is_summed_up(trainer: Trainer) -> bool:
    """Whether the run's summary ends with a validation of the model as it is now."""
    module = cast(RefineModule, trainer.lightning_module)
    summaries = [c for c in trainer.callbacks if isinstance(c, RunSummary)]  # type: ignore[attr-defined]
    return any(
        s.validations[-1:] and s.validations[-1].iteration == module.iteration for s in summaries
    )


def _ends_here(trainer: Trainer) -> bool:
    """Whether no batch follows this one, in this run."""
    loop = trainer.fit_loop
    epoch = loop.epoch_loop
    epochs = loop.epoch_progress.current.processed + 1  # type: ignore[attr-defined]
    most_epochs = -1 if loop.max_epochs is None else loop.max_epochs
    return bool(
        (trainer.should_stop and loop._can_stop_early)
        or _is_max_limit_reached(epoch.global_step, epoch.max_steps)
        or (epoch._num_ready_batches_reached() and _is_max_limit_reached(epochs, most_epochs))
    )


def _lightning_validates(trainer: Trainer) -> bool:
    """Whether Lightning does so by itself after this batch."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
