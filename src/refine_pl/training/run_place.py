"""Where a run keeps its files, whatever logger it has, and whether the place is free."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

from refine_pl.errors import ConfigError
from refine_pl.training.run_folder import CHECKPOINTS, CONFIG, CURVES, TRAINING_FILES, folder_of


def run_directory(trainer: Trainer) -> Path:
    """The run folder: that of the first logger; every process must ask for it.

    It is the folder in which Lightning makes ``checkpoints``. ``trainer.log_dir`` is not: for
    loggers that keep their data elsewhere it is a folder that all runs share. Without a logger it
    is ``trainer.default_root_dir``.
    """
    folder = _directory(trainer, trainer.loggers[0] if trainer.loggers else None)
    return Path(trainer.strategy.broadcast(str(folder)))


def goes_on_in_place(trainer: Trainer) -> bool:
    """Whether the run is that of its checkpoint, which lies in its folder; all processes must ask.

    See :func:`refuse_taken` for who may do so.
    """
    folder = run_directory(trainer).absolute()
    checkpoint = trainer.ckpt_path
    return checkpoint is not None and folder in Path(checkpoint).absolute().parents[:2]


def next_version(root: Path) -> Path:
    """The folder of the next run below ``root``, numbered as Lightning's loggers do.

    Args:
        root: ``runs/<name>``.
    """
    found = (path.name.removeprefix("version_") for path in root.glob("version_*"))
    return root / f"version_{max((int(n) + 1 for n in found if n.isdigit()), default=0)}"


def refuse_taken(trainer: Trainer, folder: Path, checkpoint: str | Path | None) -> None:
    """Refuse a folder that holds a run already.

    Args:
        trainer: with the loggers of the new run.
        folder: the run folder that it would have.
        checkpoint: that it goes on from. One in this very folder shows that the run is the same:
            a sweep, which takes the old settings out first, goes on in the folder of a run. So
            does a job that is queued again and has no logger: its checkpoint lies beside the rest.

    Raises:
        ConfigError: naming what is there.
    """
    if checkpoint is not None and Path(checkpoint).absolute().parent == folder.absolute():
        return
    names: tuple[str, ...] = (CONFIG, *TRAINING_FILES, CURVES, CHECKPOINTS)
    if checkpoint is not None and folder_of(checkpoint) == folder.absolute():
        names = (CONFIG,)
    there = [name for name in names if _is_filled(folder / name)]
    if not there:
        return
    raise ConfigError(
        f"{folder} already holds a run: {', '.join(there)}",
        where="trainer.logger" if trainer.loggers else "trainer.default_root_dir",
        way_out=_way_out(trainer.loggers[0] if trainer.loggers else None),
    )


def refuse_taken_early(trainer: Trainer, checkpoint: str | Path | None) -> None:
    """The same before a logger is started, where its folder is known: `CSVLogger` empties it.

    Raises:
        ConfigError: the folder of one of the loggers holds a run.
    """
    loggers: list[Logger | None] = [*trainer.loggers]
    for logger in loggers or [None]:
        if logger is None or isinstance(logger, TensorBoardLogger | CSVLogger):
            refuse_taken(trainer, _directory(trainer, logger), checkpoint)


def _directory(trainer: Trainer, logger: Logger | None) -> Path:
    if logger is None or isinstance(logger, DummyLogger):  # that of fast_dev_run
        return Path(trainer.default_root_dir)
    if isinstance(logger, TensorBoardLogger | CSVLogger):
        return Path(logger.log_dir)
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version


def _is_filled(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _way_out(logger: Logger | None) -> str:
    if logger is None:
        return "leave trainer.default_root_dir out: runs are then numbered"
    if isinstance(logger, TensorBoardLogger | CSVLogger):
        return "leave trainer.logger.init_args.version out: runs are then numbered"
    return (
        f"leave the run's name or id (version, id, run_id) of {type(logger).__name__} out: "
        "it then makes a new one"
    )
