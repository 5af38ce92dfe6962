"""The phases of the method: who decides what one batch does."""

from __future__ import annotations

from typing import ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer

from refine_pl.errors import ConfigError
from refine_pl.module import RefineModule


class PhaseCallback(Callback):
    """What every phase shares: a name, and that there is only one."""

    phase: ClassVar[str]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the model is a RefineModule, and that no other phase is given.

        Raises:
            ConfigError: otherwise.
        """
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        given = [type(c).__name__ for c in callbacks if isinstance(c, PhaseCallback)]
        if len(given) > 1:
            raise ConfigError(
                f"trainer.callbacks names {len(given)} phases: {', '.join(given)}",
                allowed="one of them",
            )
        if not isinstance(pl_module, RefineModule):
            raise ConfigError(
                f"{type(self).__name__} needs a RefineModule, not a {type(pl_module).__name__}"
            )


class MidTraining(PhaseCallback):
    """Mid-training: one batch of raw text is one ReFINE iteration (method, section 3).

    That is what :meth:`RefineModule.training_step` does, so this phase changes nothing. It states
    what a configuration is for, names the phase on the progress bar, and refuses another phase.
    """

    phase = "mid_training"
