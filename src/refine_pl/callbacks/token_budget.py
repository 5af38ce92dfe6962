"""A run that ends after so many tokens, to compare methods that spend them differently."""

from __future__ import annotations

from typing import Any

from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer

from refine_pl.errors import ConfigError
from refine_pl.training.module import RefineModule


class TokenBudget(Callback):
    """Stops a run when its updates have read enough sequence tokens, over all processes.

    They are those of ``run/tokens_seen``: sequences, and in post-training prompts as often as an
    update reads them. Rollout tokens are not counted. Give the baseline the budget of the run that
    it is compared with, or that times what a ReFINE update costs more (``refine-pl bench``).

    Args:
        max_tokens_seen: the iteration that reaches it is the last one.
    """

    def __init__(self, max_tokens_seen: PositiveInt) -> None:
        self.max_tokens_seen = max_tokens_seen

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop when it is spent: before the first batch if a resumed run has spent it.

        Raises:
            ConfigError: the model is not a RefineModule.
        """
        if not isinstance(pl_module, RefineModule):
            raise ConfigError(f"TokenBudget needs a RefineModule, not {type(pl_module).__name__}")
        if pl_module.tokens_seen >= self.max_tokens_seen and not trainer.should_stop:
            trainer.should_stop = True
            pl_module.print(
                f"token budget spent: {pl_module.tokens_seen:,} of {self.max_tokens_seen:,} "
                f"sequence tokens, {pl_module.iteration:,} iterations"
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """The same after each batch."""
        self.on_train_start(trainer, pl_module)
