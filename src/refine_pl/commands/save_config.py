"""The run folder of ``fit`` and ``validate``: where it is, and ``config.yaml`` in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import Logger

from refine_pl.commands.logged_settings import show_settings
from refine_pl.errors import UserError
from refine_pl.training.record_files import replace_file
from refine_pl.training.run_folder import CONFIG
from refine_pl.training.run_place import next_version, refuse_taken, run_directory

WITH_FOLDER = ("fit", "validate")
"""Commands whose runs have a folder of this kind; that of answers is another."""


class SaveConfigOnce(SaveConfigCallback):
    """Saves the resolved configuration in the run's folder, and never over another one."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config.yaml``, and give the loggers what it says.

        Raises:
            ConfigError: the run's folder already holds a run.
        """
        if self.already_saved or stage not in WITH_FOLDER:
            return  # a folder of answers is Evaluation's
        folder = run_directory(trainer)
        refusal: UserError | None = None
        if trainer.is_global_zero:
            try:
                refuse_taken(trainer, folder, self.config.get("ckpt_path"))
            except UserError as error:
                refusal = error
        refusal = trainer.strategy.broadcast(refusal)
        if refusal is not None:
            raise refusal
        self.already_saved = True
        if trainer.is_global_zero:
            text = self.parser.dump(self.config, skip_none=False)
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / CONFIG, text)
            for logger in trainer.loggers:
                show_settings(logger, text)


def default_root(settings: Mapping[str, Any], name: str) -> str | None:
    """What ``trainer.default_root_dir`` is if nobody gave it.

    Lightning's is the working directory, which is that of all runs.

    Args:
        settings: of the trainer; its loggers are made already.
        name: of the run.
    """
    given: str | None = settings["default_root_dir"]
    if given is not None:
        return given
    root = Path("runs") / name
    logger = settings["logger"]
    first = next(iter(logger), None) if isinstance(logger, list) else logger
    if first in (False, None) or settings["fast_dev_run"]:
        return str(next_version(root))
    if isinstance(first, Logger) and first.save_dir is None:  # its folders are made below
        return str(root)
    return None
