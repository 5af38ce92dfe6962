"""Rollouts for people: a table and a picture in TensorBoard, and the same samples as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from refine_pl.records import Experience
from refine_pl.report.drawing import LIGHT, pixels
from refine_pl.report.entropy import EntropyMap
from refine_pl.report.figures import entropy_figure
from refine_pl.report.text import plain
from refine_pl.selectors.base import segment_bounds, smooth
from refine_pl.training.module import RefineModule
from refine_pl.training.schedule import find_schedule

ROLLOUTS, ENTROPY = "rollouts.jsonl", "entropy.jsonl"


@dataclass(frozen=True, slots=True)
class Sample:
    """One document of an iteration, with its rollouts."""

    document: str  # its name
    entropy: torch.Tensor  # [T] float32, nats, real tokens only
    positions: list[int]  # where rollouts started
    num_segments: int  # 0 if positions do not belong to segments
    offset: int  # of the selector: how far behind the scored token's successor rollouts start
    rollout_length: int
    rows: list[dict[str, Any]]  # one for each position, as in the JSON lines


class RolloutRecorder(Callback):
    """Writes down some rollouts every so often, and at the first iteration of a phase.

    The JSON lines hold ``iteration, document, position, prefix`` (its last tokens), ``target`` and
    ``rollouts``: a list of ``text, reward, parts, advantage``; ``entropy.jsonl`` beside them the
    entropy along each document (:class:`~refine_pl.report.entropy.EntropyMap`). A resumed run
    writes into a folder of its own; with ``directory`` set, lines of iterations that will be run
    again are taken out.

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
            self._folder.mkdir(parents=True, exist_ok=True)
            maps = (entropy_map(sample, pl_module.iteration).as_line() for sample in samples)
            append_lines(self._folder / ROLLOUTS, (r for sample in samples for r in sample.rows))
            append_lines(self._folder / ENTROPY, maps)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                write_to_tensorboard(logger.experiment, samples, pl_module.iteration)

    def _is_due(self, trainer: Trainer, module: RefineModule) -> bool:
        schedule = find_schedule(trainer)
        first = module.iteration if schedule is None else schedule.place(module.iteration)[1]
        return first == 0 or (module.iteration + 1) % self.every_n_iterations == 0

    def _sample(self, module: RefineModule, experience: Experience, row: int) -> Sample:
        rollouts, batch = experience.rollouts, experience.batch
        selector = module.refine_step.selector
        length = int(batch.num_tokens[row])
        tokens = batch.tokens[row, :length].tolist()
        document = batch.documents[row] if batch.documents else f"row {batch.rows[row]}"
        valid = rollouts.valid[row].tolist()
        places = [s for s, ok in enumerate(valid) if ok]
        positions = [int(rollouts.positions.index[row, s]) for s in places]
        rows = []
        for s, position in zip(places, positions, strict=True):
            drawn = [
                {
                    "text": decode(module, rollouts.tokens[row, s, n].tolist()),
                    "reward": _rounded(experience.rewards[row, s, n]),
                    "parts": {
                        k: _rounded(v[row, s, n]) for k, v in experience.reward_parts.items()
                    },
                    "advantage": _rounded(experience.advantages[row, s, n]),
                }
                for n in range(rollouts.tokens.shape[2])
            ]
            rows.append(
                {
                    "iteration": module.iteration + 1,
                    "document": document,
                    "position": position,
                    "prefix": decode(
                        module, tokens[max(0, position - self.prefix_tokens) : position]
                    ),
                    "target": decode(module, rollouts.targets[row, s].tolist()),
                    "rollouts": drawn,
                }
            )
        return Sample(
            document,
            experience.entropy[row, :length].float().cpu(),
            positions,
            rollouts.tokens.shape[1] if selector.one_per_segment else 0,
            selector.offset,
            rollouts.tokens.shape[3],
            rows,
        )


def decode(module: RefineModule, tokens: list[int]) -> str:
    """The text of tokens, or their numbers if there is no tokenizer."""
    if module.tokenizer is None:
        return " ".join(str(token) for token in tokens)
    return str(module.tokenizer.decode(tokens))


def append_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows at the end of a file of JSON lines."""
    with file.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def drop_later_lines(file: Path, iteration: int) -> None:
    """Keep the lines of iterations up to ``iteration``; a line that was cut off is dropped too."""
    kept = []
    # Not splitlines: it also splits at separators that JSON leaves inside a string.
    for line in file.read_text(encoding="utf-8").split("\n"):
        try:
            keep = json.loads(line)["iteration"] <= iteration
        except (ValueError, KeyError, TypeError):
            keep = False
        if keep:
            kept.append(line + "\n")
    scratch = file.with_suffix(".jsonl.new")
    scratch.write_text("".join(kept), encoding="utf-8")
    scratch.replace(file)  # at once, so that an interruption loses nothing


def write_to_tensorboard(writer: Any, samples: list[Sample], iteration: int) -> None:
    """One table of all samples, and one picture for each."""
    table = "\n\n".join(markdown_table(sample) for sample in samples)
    writer.add_text("rollouts/table", table, iteration)
    for i, sample in enumerate(samples):
        tag = "rollouts/entropy" if len(samples) == 1 else f"rollouts/entropy_{i}"
        writer.add_image(tag, entropy_picture(sample, iteration), iteration, dataformats="HWC")


def markdown_table(sample: Sample) -> str:
    """One line for each rollout, in the order of the positions."""
    parts = list(sample.rows[0]["rollouts"][0]["parts"]) if sample.rows else []
    names = ["position", "prefix", "target", "rollout", "reward", *parts, "advantage"]
    lines = [f"**{plain(sample.document)}**", ""]
    lines += ["| " + " | ".join(plain(n) for n in names) + " |", "|" + "---|" * len(names)]
    for row in sample.rows:
        for n, rollout in enumerate(row["rollouts"]):
            same = [str(row["position"]), plain(row["prefix"]), plain(row["target"])]
            cells = [
                *(same if n == 0 else [""] * 3),
                plain(rollout["text"]),
                f"{rollout['reward']:.3f}",
                *(f"{rollout['parts'][name]:.3f}" for name in parts),
                f"{rollout['advantage']:+.2f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def entropy_map(sample: Sample, iteration: int) -> EntropyMap:
    """What ``entropy.jsonl`` and the picture show of a sample."""
    num_tokens = torch.tensor([len(sample.entropy)])
    smoothed = smooth(sample.entropy[None], num_tokens, sample.rollout_length)[0]
    borders: list[int] = []
    if sample.num_segments:
        borders = segment_bounds(num_tokens, sample.num_segments)[0][0, 1:].tolist()
    return EntropyMap(
        iteration,
        sample.document,
        sample.entropy.tolist(),
        smoothed.tolist(),
        sample.positions,
        [max(position - 1 - sample.offset, 0) for position in sample.positions],
        borders,
    )


def entropy_picture(sample: Sample, iteration: int) -> np.ndarray:
    """Entropy along a document, segment borders and positions: ``[height, width, 4]`` uint8."""
    return pixels(entropy_figure(entropy_map(sample, iteration), LIGHT))


def _rounded(value: torch.Tensor) -> float:
    return round(float(value), 6)
