"""The end of a run: a number of iterations that ends it, and a validation whatever ends it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.utilities import _is_max_limit_reached

from refine_pl.errors import ConfigError
from refine_pl.training.module import RefineModule
from refine_pl.training.run_validation import run_validation


class IterationLimit(Callback):
    """Stops a run after so many iterations, however many updates a batch makes.

    Args:
        iterations: over all resumed runs.
    """

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a checkpoint that has nothing left to train.

        Raises:
            ConfigError: it has made so many iterations already.
        """
        assert isinstance(pl_module, RefineModule)
        if pl_module.iteration >= self.iterations:
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
    follows a validation is that of the end.

    To be the last of a trainer's callbacks that may stop the run.
    """

    def __init__(self) -> None:
        self._measured: int | None = None  # iterations

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
