"""Rollouts for people: a table and a picture in the loggers, and the same samples as JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer

from refine_pl.callbacks.showing import Sample, show_samples
from refine_pl.records import Experience
from refine_pl.selectors.base import segment_bounds, smooth
from refine_pl.training.module import RefineModule
from refine_pl.training.record_files import append_records, drop_later_lines
from refine_pl.training.run_folder import ENTROPY, ROLLOUTS, EntropyMap, Position, Rollout
from refine_pl.training.run_place import run_directory
from refine_pl.training.schedule import find_schedule

_DIGITS = 4  # after the point, of every entropy in the file


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
        self._folder = run_directory(trainer) if self.directory is None else Path(self.directory)

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
        show_samples(trainer.loggers, samples, pl_module.iteration)

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
            prefix = module.text(tokens[max(0, start - self.prefix_tokens) : start])
            target = module.text(rollouts.targets[row, s].tolist())
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
        module.text(experience.rollouts.tokens[place].tolist()),
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
