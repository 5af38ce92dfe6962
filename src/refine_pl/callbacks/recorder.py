"""Rollouts for people: a table and a picture in TensorBoard, and the same samples as JSON lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from refine_pl.figures.drawing import LIGHT, pixels
from refine_pl.figures.plots import entropy_figure
from refine_pl.figures.text import markdown_table, plain
from refine_pl.records import Experience
from refine_pl.selectors.base import segment_bounds, smooth
from refine_pl.training.module import RefineModule
from refine_pl.training.record_files import append_records, drop_later_lines
from refine_pl.training.run_folder import ENTROPY, ROLLOUTS, EntropyMap, Position, Rollout
from refine_pl.training.schedule import find_schedule

_DIGITS = 4  # after the point, of every entropy in the file


@dataclass(frozen=True, slots=True)
class Sample:
    """One document of an iteration, with its rollouts."""

    entropy: EntropyMap
    positions: list[Position]


class RolloutRecorder(Callback):
    """Writes down some rollouts every so often, and at the first iteration of a stage.

    Each line of ``rollouts.jsonl`` is a :class:`~refine_pl.training.run_folder.Position`, each of
    ``entropy.jsonl`` an :class:`~refine_pl.training.run_folder.EntropyMap` of one document. A
    resumed run writes into a folder of its own; with ``directory`` set, lines of iterations that
    will be run again are taken out.

    Args:
        every_n_iterations: how often.
        num_rows: documents each time.
        prefix_tokens: how much of the prefix is shown.
        directory: where both files are written; the run folder if left out.
    """

    def __init__(
        self,
        every_n_iterations: PositiveInt = 50,
        num_rows: PositiveInt = 1,
        prefix_tokens: NonNegativeInt = 48,
        directory: str | None = None,
    ) -> None:
        self.every_n_iterations = every_n_iterations
        self.num_rows = num_rows
        self.prefix_tokens = prefix_tokens
        self.directory = directory
        self._folder: Path | None = None
        self._samples: list[Sample] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder; every process must ask for it."""
        folder = self.directory or trainer.log_dir
        self._folder = Path(folder) if folder else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what will be written again."""
        assert isinstance(pl_module, RefineModule)
        if trainer.is_global_zero and self._folder is not None:
            for file in (self._folder / ROLLOUTS, self._folder / ENTROPY):
                if file.exists():
                    drop_later_lines(file, pl_module.iteration)

    def on_experience(self, trainer: Trainer, module: RefineModule, experience: Experience) -> None:
        """Keep the first rows of an iteration that is due. Called by the module, while drawing."""
        missing = self.num_rows - len(self._samples)
        if missing > 0 and trainer.is_global_zero and self._is_due(trainer, module):
            rows = range(min(missing, len(experience.batch)))
            self._samples += [self._sample(module, experience, row) for row in rows]

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write what was kept."""
        assert isinstance(pl_module, RefineModule)
        samples, self._samples = self._samples, []
        if not samples:
            return
        if self._folder is not None:
            positions = (position for sample in samples for position in sample.positions)
            append_records(self._folder / ROLLOUTS, positions)
            append_records(self._folder / ENTROPY, (sample.entropy for sample in samples))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                write_to_tensorboard(logger.experiment, samples, pl_module.iteration)

    def _is_due(self, trainer: Trainer, module: RefineModule) -> bool:
        schedule = find_schedule(trainer)
        first = module.iteration if schedule is None else schedule.place(module.iteration)[1]
        return first == 0 or (module.iteration + 1) % self.every_n_iterations == 0

    def _sample(self, module: RefineModule, experience: Experience, row: int) -> Sample:
        rollouts, batch = experience.rollouts, experience.batch
        tokens = batch.tokens[row, : int(batch.num_tokens[row])].tolist()
        document = batch.documents[row] if batch.documents else f"row {batch.rows[row]}"
        positions = []
        for s in rollouts.valid[row].nonzero().flatten().tolist():
            start = int(rollouts.positions.index[row, s])
            prefix = decode(module, tokens[max(0, start - self.prefix_tokens) : start])
            target = decode(module, rollouts.targets[row, s].tolist())
            drawn = [
                _rollout(module, experience, row, s, n) for n in range(rollouts.tokens.shape[2])
            ]
            positions.append(Position(module.iteration + 1, document, start, prefix, target, drawn))
        starts = [position.position for position in positions]
        return Sample(_entropy_map(module, experience, row, document, starts), positions)


def _rollout(module: RefineModule, experience: Experience, *place: int) -> Rollout:
    def number(values: torch.Tensor) -> float:
        return round(float(values[place]), 6)

    return Rollout(
        decode(module, experience.rollouts.tokens[place].tolist()),
        number(experience.rewards),
        {name: number(values) for name, values in experience.reward_parts.items()},
        number(experience.advantages),
    )


def _entropy_map(
    module: RefineModule, experience: Experience, row: int, document: str, starts: list[int]
) -> EntropyMap:
    """The entropy along a row, and where rollouts started in it."""

    def rounded(values: torch.Tensor) -> list[float]:
        return [round(value, _DIGITS) for value in values[0].tolist()]

    rollouts, selector = experience.rollouts, module.refine_step.selector
    num_tokens = experience.batch.num_tokens[row : row + 1].cpu()
    entropy = experience.entropy[row : row + 1, : int(num_tokens)].float().cpu()
    smoothed = smooth(entropy, num_tokens, rollouts.tokens.shape[3])
    borders: list[int] = []
    if selector.one_per_segment:
        borders = segment_bounds(num_tokens, rollouts.tokens.shape[1])[0][0, 1:].tolist()
    return EntropyMap(
        module.iteration + 1,
        document,
        rounded(entropy),
        rounded(smoothed),
        starts,
        [max(start - 1 - selector.offset, 0) for start in starts],
        borders,
    )


def decode(module: RefineModule, tokens: list[int]) -> str:
    """The text of tokens, or their numbers if there is no tokenizer."""
    if module.tokenizer is None:
        return " ".join(str(token) for token in tokens)
    return str(module.tokenizer.decode(tokens))


def write_to_tensorboard(writer: Any, samples: Sequence[Sample], iteration: int) -> None:
    """One table of all samples, and one picture for each: ``[height, width, 4]`` uint8."""
    table = "\n\n".join(samples_table(sample) for sample in samples)
    writer.add_text("rollouts/table", table, iteration)
    for i, sample in enumerate(samples):
        tag = "rollouts/entropy" if len(samples) == 1 else f"rollouts/entropy_{i}"
        picture = pixels(entropy_figure, LIGHT, data=sample.entropy)
        writer.add_image(tag, picture, iteration, dataformats="HWC")


def samples_table(sample: Sample) -> str:
    """A Markdown table with a line for each rollout, in the order of the positions."""
    parts = list(sample.positions[0].rollouts[0].parts) if sample.positions else []
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
