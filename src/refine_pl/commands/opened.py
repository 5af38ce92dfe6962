"""A finished run opened again: its model with the last weights, and its data."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer

from refine_pl.commands.checkpoints import read_checkpoint
from refine_pl.commands.lightning_cli import RefineCLI
from refine_pl.errors import CheckpointError
from refine_pl.sweep.process import newest_checkpoint
from refine_pl.training.frozen_copies import fit_copy
from refine_pl.training.module import RefineModule
from refine_pl.training.run_folder import CONFIG


class _Made(RefineCLI):
    """Makes the module and the data of a configuration, and runs nothing."""

    def _set_seed(self) -> None:
        pass

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """One that knows the device and the precision alone."""
        settings = self._get(self.config_init, "trainer")
        return Trainer(
            accelerator=settings["accelerator"],
            precision=settings["precision"],
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def open_run(run: Path) -> tuple[RefineModule, LightningDataModule, Trainer]:
    """The module of a run with the weights of its last checkpoint, its data and a trainer.

    Args:
        run: its folder.

    Raises:
        UserError: it has no checkpoint, or its settings cannot be used any more.
    """
    file = newest_checkpoint(run)
    if file is None or file.is_dir():
        raise CheckpointError(
            f"{run} holds no checkpoint that can be measured again",
            where=str(run),
            allowed="a .ckpt file of a run that is not sharded",
        )
    with _quietly():
        cli = _Made(["validate", "--config", str(run / CONFIG), "--ckpt_path", "null"])
        module, data = cli.model, cli.datamodule
        data.prepare_data()
        data.setup("validate")
    state = fit_copy(read_checkpoint(str(file))["state_dict"], "reference", False)
    if module.validation.yardstick:
        module.yardstick = copy.deepcopy(module.policy).requires_grad_(False)
    module.load_state_dict(fit_copy(state, "yardstick", module.validation.yardstick))
    module.refine_step.reward.bind(getattr(data, "tokenizer", None))
    return module.to(cli.trainer.strategy.root_device).eval(), data, cli.trainer


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what a run says when it starts."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
