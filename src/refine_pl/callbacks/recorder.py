"""Rollouts for people: a table and a picture in TensorBoard, and the same samples as JSON lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from refine_pl.callbacks.schedule import find_schedule
from refine_pl.module import RefineModule
from refine_pl.records import Experience
from refine_pl.selectors.base import segment_bounds, smooth

# What Markdown or HTML would take for markup.
MARKUP = {ord(c): f"&#{ord(c)};" for c in "|<>&*_`[]\\~#"}


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
    ``rollouts``: a list of ``text, reward, parts, advantage``. A resumed run writes into a folder
    of its own; with ``directory`` set, lines of iterations that will be run again are taken out.

    Args:
        every_n_iterations: how often.
        num_rows: documents each time.
        prefix_tokens: how much of the prefix is shown.
        directory: where ``rollouts.jsonl`` is written; the run folder if left out.
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
        self._file: Path | None = None
        self._samples: list[Sample] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder; every process must ask for it."""
        folder = self.directory or trainer.log_dir
        self._file = Path(folder) / "rollouts.jsonl" if folder else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what will be written again."""
        assert isinstance(pl_module, RefineModule)
        if trainer.is_global_zero and self._file is not None and self._file.exists():
            drop_later_lines(self._file, pl_module.iteration)

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
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                for sample in samples:
                    file.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in sample.rows)
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


def drop_later_lines(file: Path, iteration: int) -> None:
    """Keep the lines of iterations up to ``iteration``; a line that was cut off is dropped too."""
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            keep = json.loads(line)["iteration"] <= iteration
        except (ValueError, KeyError, TypeError):
            keep = False
        if keep:
            kept.append(line)
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


def plain(text: str) -> str:
    """Text on one line that Markdown shows as it is; spaces at the ends stay visible."""
    text = text.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    after = len(text) - before - len(inner) if inner else 0
    return "␣" * before + inner.translate(MARKUP) + "␣" * after


def entropy_picture(sample: Sample, iteration: int) -> np.ndarray:
    """Entropy along a document, segment borders and positions: ``[height, width, 4]`` uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    length = len(sample.entropy)
    num_tokens = torch.tensor([length])
    smoothed = smooth(sample.entropy[None], num_tokens, sample.rollout_length)[0]
    borders = []
    if sample.num_segments:
        borders = segment_bounds(num_tokens, sample.num_segments)[0][0, 1:].tolist()
    figure = Figure(figsize=(10, 3), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(sample.entropy.numpy(), color="0.8", linewidth=0.6, label="entropy")
    axes.plot(smoothed.numpy(), color="tab:blue", linewidth=0.8, label="smoothed")
    for border in borders:
        axes.axvline(border, color="0.6", linestyle=":", linewidth=0.8)
    scored = [max(position - 1 - sample.offset, 0) for position in sample.positions]
    heights = smoothed[scored].tolist()
    axes.plot(scored, heights, "v", color="tab:red", markersize=6, label="chosen position")
    top = max(float(sample.entropy.max()), 0.1) * 1.2  # room for the legend
    axes.set(xlim=(0, max(length - 1, 1)), ylim=(0, top), xlabel="token", ylabel="nats")
    axes.set_title(f"{sample.document}, iteration {iteration}", fontsize=9, parse_math=False)
    axes.legend(loc="upper right", fontsize=7, ncols=3)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def _rounded(value: torch.Tensor) -> float:
    return round(float(value), 6)
