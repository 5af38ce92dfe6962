"""Writes what a model answers, scores it, and sums up: ``refine-pl test`` and ``predict``."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from jsonargparse.typing import OpenUnitInterval, PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from rich.console import Console

from refine_pl.backbones.weight_files import weights_hash
from refine_pl.callbacks.evaluation_card import describe, now, source
from refine_pl.callbacks.evaluation_folder import (
    EvaluationFolder,
    Line,
    complete_batches,
    next_free_folder,
)
from refine_pl.callbacks.evaluation_scores import summarize, table
from refine_pl.errors import ConfigError
from refine_pl.evaluation.tasks import scores
from refine_pl.task_records import Answer, TaskRow
from refine_pl.training.module import RefineModule
from refine_pl.training.record_files import as_line, replace_file, write_json
from refine_pl.training.run_folder import CONFIG, SCORES
from refine_pl.training.test_time import TestTimeTraining


class Evaluation(Callback):
    """Writes every answer as it comes, and in ``test`` scores it.

    The run folder gets ``answers.jsonl`` (``predictions.jsonl`` in ``predict``), ``card.json``
    (what the evaluation was made with), in ``test`` also ``scores.json``, and ``config.yaml`` from
    the command line. An evaluation that was interrupted goes on if it is started again with the
    same folder: rows that are answered are kept, provided that weights, data, decoding and
    test-time training are the same.

    Args:
        folder: the run folder; the next free ``runs/<test or predict>/<name>/version_<n>`` if left
            out.
        name: part of that folder.
        level: of the intervals in tables.
        resamples: of the bootstrap that gives the intervals.
    """

    def __init__(
        self,
        folder: str | None = None,
        name: str = "model",
        level: OpenUnitInterval = 0.95,
        resamples: PositiveInt = 10_000,
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ConfigError(
                f"name is {name!r}, which leads out of the folder of runs",
                where="evaluation",
                allowed="a name, or several with / between them",
                way_out="--out FOLDER writes to any folder",
            )
        self.name = name
        self.level = level
        self.resamples = resamples
        self.command: list[str] = []  # set by the command line, for the card
        self.config_text: str | None = None  # set by the command line: the resolved configuration
        self.stream: TextIO | None = None  # set by the command line: gets every line as well
        self._rows: Sequence[TaskRow] = ()
        self._kept: frozenset[str] = frozenset()
        self._card: dict[str, Any] = {}
        self._new_tokens = 0
        self._started_at: float | None = None

    # Start ---------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder, and what was answered in it before.

        Raises:
            ConfigError: the data are not rows of tasks, a task is not known, or the folder holds
                something else.
        """
        if stage not in ("test", "predict"):
            return
        stage = str(getattr(stage, "value", stage))  # Lightning passes a member of an enum
        if not isinstance(pl_module, RefineModule):
            raise ConfigError(f"Evaluation needs a RefineModule, not {type(pl_module).__name__}")
        refuse_sharding(trainer.strategy, trainer.world_size)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "skip"):
            raise ConfigError(
                f"refine-pl {stage} needs rows of tasks"
                + ("" if data is None else f", and {type(data).__name__} has none"),
                where="data",
                way_out="data.class_path: refine_pl.data.TaskData",
            )
        self._rows = data.task_rows
        if self.folder is None:
            root = Path("runs") / stage / self.name
            self.folder = Path(trainer.strategy.broadcast(str(next_free_folder(root))))
        self._files = EvaluationFolder(self.folder, stage)
        tasks = [row.task for row in self._rows] if stage == "test" else []
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        self._training = next((c for c in callbacks if isinstance(c, TestTimeTraining)), None)
        self._card = describe(trainer, pl_module, stage, tasks, self._training)
        self._card["command"] = self.command
        self._files.refuse_another(self._card)
        self._started_at = None
        self._kept = data.skip = frozenset(self._answered(trainer, data))
        if self._kept:
            pl_module.print(
                f"continuing: {len(self._kept):,} of {len(self._rows):,} rows are answered"
            )

    def _answered(self, trainer: Trainer, data: Any) -> set[str]:
        """Ids of the rows that need not be answered again; drops the lines of all others."""
        # Every process has read the card and found the folder in order before this one writes.
        trainer.strategy.barrier("evaluation folder")
        lines = self._files.lines()
        ids = [row.id for row in self._rows]
        kept = {line["id"] for line in lines}.intersection(ids)
        if self._training is not None and kept and len(kept) < len(ids):
            if self._training.reset == "never":
                raise ConfigError(
                    "this evaluation cannot go on: TestTimeTraining(reset=never) has trained on "
                    f"the {len(kept):,} rows that are answered, and these weights are lost",
                    where=str(self.folder),
                    way_out="start anew with another --out, or use reset: batch",
                )
            # What a batch was trained on depends on all of its rows.
            kept = complete_batches(ids, kept, data.test_batch_size)
        trainer.strategy.barrier("answers read")
        if trainer.is_global_zero and lines:
            self._files.rewrite(line for line in lines if line["id"] in kept)
        trainer.strategy.barrier("answers kept")
        return kept

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the weights with those of an earlier session, and write the card.

        Raises:
            ConfigError: they are others.
        """
        assert isinstance(pl_module, RefineModule)
        self._card["model"]["source"] = source(trainer, pl_module)
        self._card["model"]["weights_hash"] = weights_hash(pl_module.policy)
        self._card["device"] = str(pl_module.device.type)
        self._files.refuse_another(self._card)
        for name in ("started", "seconds", "tokens"):
            self._card[name] = (self._files.earlier or {}).get(name) or self._card[name]
        self._started_at, self._new_tokens = time.monotonic(), 0
        if trainer.is_global_zero:
            self._files.write_card(self._card)
            if self.config_text is not None:
                replace_file(self._files.path / CONFIG, self.config_text)
        if self.stream is not None:  # an earlier session printed them to another reader
            self._show(line for line in self._files.lines() if line["id"] in self._kept)

    on_predict_start = on_test_start

    # Answers -------------------------------------------------------------------------------------

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Write the answers of a batch; in ``test`` score them first."""
        scored = self._card["stage"] == "test"
        lines = [line_of(answer, scored) for answer in outputs]
        self._files.append(lines, trainer.global_rank)
        self._show(lines)
        self._new_tokens += sum(answer.num_tokens for answer in outputs)

    on_predict_batch_end = on_test_batch_end

    def _show(self, lines: Iterable[Line]) -> None:
        if self.stream is not None:
            self.stream.writelines(map(as_line, lines))
            self.stream.flush()

    # End -----------------------------------------------------------------------------------------

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Keep what there is."""
        if trainer.is_global_zero and self._started_at is not None:
            self._write_card(self._new_tokens)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the answers in order, and sum up.

        This is the first hook after the rows that every process comes to: one without a batch is
        not asked for any other.
        """
        if stage not in ("test", "predict"):
            return
        if self._started_at is None:
            self.on_test_start(trainer, pl_module)
        trainer.strategy.barrier("answers written")
        if trainer.is_global_zero:
            self._finish()
        trainer.strategy.barrier("evaluation finished")

    def _finish(self) -> None:
        by_id = {line["id"]: line for line in self._files.lines()}
        lines = [by_id[row.id] for row in self._rows if row.id in by_id]
        complete = len(lines) == len(self._rows)
        self._files.rewrite(lines)
        if self._training is not None:
            self._card["test_time_training_totals"] = self._training.totals()
        tokens = sum(line["num_tokens"] for line in lines if line["id"] not in self._kept)
        self._write_card(tokens, finished=now() if complete else None)
        console = Console(highlight=False)
        if self._card["stage"] == "test" and lines:
            found = summarize(lines, level=float(self.level), resamples=int(self.resamples))
            write_json(self._files.path / SCORES, found)
            console.print(table(found))
        cut = sum(line["cut_tokens"] > 0 for line in lines)
        if cut:
            console.print(f"{cut:,} of {len(lines):,} prompts were cut in the middle")
        if not complete:
            console.print(self.progress(), soft_wrap=True)
        console.print(f"run folder   {self.folder}", soft_wrap=True)

    def progress(self) -> str:
        """How many rows are answered, and how to go on."""
        if self._started_at is None:
            return "no row was answered"
        answered = len(self._files.lines())  # by all processes
        return (
            f"{answered:,} of {len(self._rows):,} rows are answered; "
            f"continue with --out {self.folder}"
        )

    def _write_card(self, tokens: int, **values: Any) -> None:
        """Write the card, with the time of this session and the tokens that it answered."""
        assert self._started_at is not None
        self._card |= values
        self._card["seconds"] += time.monotonic() - self._started_at
        self._card["tokens"] += tokens
        if self._card["seconds"] > 0:
            self._card["tokens_per_s"] = self._card["tokens"] / self._card["seconds"]
        self._files.write_card(self._card)


def line_of(answer: Answer, scored: bool) -> Line:
    """A line of ``answers.jsonl`` if it is ``scored``, otherwise of ``predictions.jsonl``.

    Raises:
        DataError: the row has no references to be scored by.
    """
    row = answer.row
    answered = {
        "prompt_tokens": answer.prompt_tokens,
        "cut_tokens": answer.cut_tokens,
        "output": answer.text,
        "num_tokens": answer.num_tokens,
        "finish": answer.finish,
    }
    if not scored:
        return {"id": row.id, **answered}
    (_, released), *further = scores(row.task, answer.text, row.answers).items()
    line = {"id": row.id, "task": row.task, "length": row.length, **answered}
    return line | {"references": list(row.answers), "score": released, "scores": dict(further)}


def refuse_sharding(strategy: object, processes: int) -> None:
    """Refuse processes that hold parts of the model: each answers batches of its own.

    Raises:
        ConfigError: they do.
    """
    if processes > 1 and isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
        raise ConfigError(
            f"{type(strategy).__name__} gives each of {processes} processes a part of the model, "
            "and they answer different numbers of tokens: they would wait for one another forever",
            where="trainer.strategy",
            allowed="auto or ddp",
            way_out="refine-pl export makes one folder of a sharded checkpoint: "
            "--model.pretrained FOLDER",
        )
