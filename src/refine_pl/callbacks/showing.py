"""Samples in loggers: tables and pictures in whichever can show them; and how to look at a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from refine_pl.figures.drawing import LIGHT, pixels
from refine_pl.figures.plots import entropy_figure
from refine_pl.figures.text import markdown_table, plain
from refine_pl.training.run_folder import CURVES, EntropyMap, Position

TABLE = "rollouts/table"
PICTURE = "rollouts/entropy"


@dataclass(frozen=True, slots=True)
class Sample:
    """One document of an iteration, with its rollouts."""

    entropy: EntropyMap
    positions: list[Position]


def show_samples(loggers: Iterable[Logger], samples: Sequence[Sample], iteration: int) -> None:
    """Give each logger what it can show: a table of all samples, and a picture for each.

    What a logger can do is told by its methods, so that those of other packages work too. One that
    shows neither text nor pictures is left alone: the same samples are in the run folder.
    """

    @cache  # drawing takes long; not every logger asks for it
    def pictures() -> dict[str, Any]:
        names = [PICTURE if len(samples) == 1 else f"{PICTURE}_{i}" for i in range(len(samples))]
        drawn = (pixels(entropy_figure, LIGHT, data=sample.entropy) for sample in samples)
        return dict(zip(names, drawn, strict=True))

    text = "\n\n".join(samples_table(sample) for sample in samples)
    for logger in loggers:
        # In processes other than the first, and of some loggers, it is a dummy without values.
        experiment: Any = getattr(logger, "experiment", None)
        if isinstance(logger, CSVLogger):  # it has no pictures: they are files beside its own
            _write_files(Path(logger.log_dir), text, pictures(), iteration)
        elif hasattr(experiment, "add_text") and hasattr(experiment, "add_image"):
            experiment.add_text(TABLE, text, iteration)
            for name, picture in pictures().items():
                experiment.add_image(name, picture, iteration, dataformats="HWC")
        elif hasattr(logger, "log_text") and hasattr(logger, "log_image"):  # W&B
            columns, rows = sample_rows(samples)
            logger.log_text(TABLE, columns=columns, data=rows, step=iteration)
            for name, picture in pictures().items():
                logger.log_image(name, images=[picture], step=iteration)
        elif hasattr(logger, "run_id") and hasattr(experiment, "log_image"):  # MLflow
            experiment.log_text(logger.run_id, text, f"{TABLE}_{iteration:06}.md")
            for name, picture in pictures().items():
                experiment.log_image(logger.run_id, picture, f"{name}_{iteration:06}.png")


def _write_files(folder: Path, text: str, pictures: dict[str, Any], iteration: int) -> None:
    from matplotlib.image import imsave  # slow to import

    for name, picture in pictures.items():
        file = folder / f"{name}_{iteration:06}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        imsave(file, picture)
    (folder / f"{TABLE}_{iteration:06}.md").write_text(text + "\n", encoding="utf-8")


def _names(samples: Sequence[Sample]) -> list[str]:
    """The rewards' names: they are the same everywhere."""
    drawn = (position.rollouts for sample in samples for position in sample.positions)
    return next((list(rollouts[0].parts) for rollouts in drawn), [])


def sample_rows(samples: Sequence[Sample]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows, one for each rollout, in the order of the positions."""
    parts = _names(samples)
    columns = ["document", "position", "prefix", "target", "rollout", "reward", *parts, "advantage"]
    rows: list[list[Any]] = []
    for sample in samples:
        for row in sample.positions:
            for rollout in row.rollouts:
                place = [row.document, row.position, row.prefix, row.target, rollout.text]
                values = [rollout.parts[name] for name in parts]
                rows.append([*place, rollout.reward, *values, rollout.advantage])
    return columns, rows


def samples_table(sample: Sample) -> str:
    """A Markdown table with a line for each rollout, in the order of the positions."""
    parts = _names([sample])
    names = ["position", "prefix", "target", "rollout", "reward", *parts, "advantage"]
    rows = []
    for row in sample.positions:
        same = [str(row.position), plain(row.prefix), plain(row.target)]
        for rollout in row.rollouts:
            numbers = [f"{value:.3f}" for value in (rollout.reward, *rollout.parts.values())]
            rows.append([*same, plain(rollout.text), *numbers, f"{rollout.advantage:+.2f}"])
            same = [""] * 3  # below the first rollout of a position
    title = f"**{plain(sample.entropy.document)}**"
    return "\n".join([title, "", *markdown_table([plain(name) for name in names], rows)])


def looking_hints(loggers: Sequence[Logger], folder: Path) -> Iterator[str]:
    """How to look at a run: a line for each logger that keeps something to look at.

    Args:
        loggers: of the run.
        folder: the run folder.
    """
    for logger in loggers:
        kind = type(logger).__name__
        if isinstance(logger, TensorBoardLogger):
            yield f"tensorboard --logdir {Path(logger.log_dir).parent}"
        elif isinstance(logger, CSVLogger):
            yield str(Path(logger.log_dir) / CURVES)
        elif kind == "WandbLogger":
            run: Any = logger.experiment  # type: ignore[attr-defined]
            place = None if getattr(run, "offline", False) else getattr(run, "url", None)
            yield place or f"wandb sync {Path(getattr(run, 'dir', folder)).parent}"
        elif kind == "MLFlowLogger":
            yield f"mlflow ui --backend-store-uri {logger._tracking_uri}"  # type: ignore[attr-defined]
