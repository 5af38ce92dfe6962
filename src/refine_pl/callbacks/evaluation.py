"""Writes what a model answers, scores it, and sums up: ``refine-pl test`` and ``predict``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jsonargparse.typing import OpenUnitInterval, PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from rich.console import Console

from refine_pl.callbacks.evaluation_folder import (
    check_folder,
    complete_batches,
    next_free_folder,
    read_card,
    refuse_differences,
)
from refine_pl.errors import ConfigError
from refine_pl.evaluation.answer_files import (
    ANSWERS,
    PREDICTIONS,
    Line,
    LineWriter,
    part_file,
    read_all,
    rewrite,
    write_json,
)
from refine_pl.evaluation.results import SCORES, summarize
from refine_pl.evaluation.run_card import CARD, versions, weights_hash
from refine_pl.evaluation.tasks import rule_of, scores
from refine_pl.task_records import Answer, TaskRow
from refine_pl.training.module import RefineModule
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
        self.name = name
        self.level = level
        self.resamples = resamples
        self.command: list[str] = []  # set by the command line, for the card
        self.config_text: str | None = None  # set by the command line: the resolved configuration
        self.num_rows = self.num_answered = 0  # of the whole evaluation, for progress and messages
        self._rows: Sequence[TaskRow] = ()
        self._card: dict[str, Any] = {}
        self._earlier: dict[str, Any] | None = None
        self._writer: LineWriter | None = None
        self._new_tokens = 0
        self._started_at: float | None = None
        self._kept: frozenset[str] = frozenset()

    # Start ---------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder, and what was answered in it before.

        Raises:
            ConfigError: the data are no rows of tasks, a task is not known, or the folder holds
                something else.
        """
        if stage not in ("test", "predict"):
            return
        stage = str(getattr(stage, "value", stage))  # Lightning passes a member of an enum
        if not isinstance(pl_module, RefineModule):
            raise ConfigError(f"Evaluation needs a RefineModule, not {type(pl_module).__name__}")
        refuse_sharding(trainer.strategy, trainer.world_size)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._rows = _rows_of(data, stage)
        self._name = ANSWERS if stage == "test" else PREDICTIONS
        if self.folder is None:
            root = Path("runs") / stage / self.name
            self.folder = Path(trainer.strategy.broadcast(str(next_free_folder(root))))
        self._earlier = read_card(self.folder)
        self._card = self._describe(trainer, pl_module, stage)
        check_folder(self.folder, self._name, self._earlier)
        if self._earlier is not None:
            refuse_differences(self._earlier, self._card, self.folder)
        self._kept = frozenset(self._answered(trainer))
        data.skip = self._kept
        self.num_rows, self.num_answered = len(self._rows), len(self._kept)
        if self._kept:
            pl_module.print(
                f"continuing: {self.num_answered:,} of {self.num_rows:,} rows are answered"
            )

    def _answered(self, trainer: Trainer) -> set[str]:
        """Ids of the rows that need not be answered again; drops the lines of all others."""
        assert self.folder is not None
        # Every process has read the card and found the folder in order before this one writes.
        trainer.strategy.barrier("evaluation folder")
        lines = read_all(self.folder, self._name)
        known = {row.id for row in self._rows}
        kept = {line["id"] for line in lines if line["id"] in known}
        training = _test_time_training(trainer)
        if training is not None and kept and len(kept) < len(known):
            if training.reset == "never":
                raise ConfigError(
                    "this evaluation cannot go on: TestTimeTraining(reset=never) has trained on "
                    f"the {len(kept):,} rows that are answered, and these weights are lost",
                    where=str(self.folder),
                    way_out="start anew with another --out, or use reset: batch",
                )
            # What a batch was trained on depends on all of its rows.
            size = trainer.datamodule.test_batch_size  # type: ignore[attr-defined]
            kept = complete_batches([row.id for row in self._rows], kept, size)
        trainer.strategy.barrier("answers read")
        if trainer.is_global_zero and lines:
            rewrite(self.folder, self._name, [line for line in lines if line["id"] in kept])
        trainer.strategy.barrier("answers kept")
        return kept

    def _describe(self, trainer: Trainer, module: RefineModule, stage: str) -> dict[str, Any]:
        """The card, without what is only known when the weights are loaded."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        decoding = module.answering.describe()
        if decoding["decoding"] == "sample":
            decoding["seed"] = module.seed
        training = _test_time_training(trainer)
        tasks = dict.fromkeys(row.task for row in self._rows) if stage == "test" else ()
        return {
            "stage": stage,
            "versions": versions(),
            "model": {
                "source": None,
                "class": type(module.policy).__name__,
                "parameters": sum(p.numel() for p in module.policy.parameters()),
                "config": module.policy.config(),
            },
            "decoding": decoding,
            "data": {"hash": data.data_hash, **data.describe()},
            "rules": {task: _rule(task) for task in tasks},
            "test_time_training": None
            if training is None
            # What a row is answered with depends on the rows beside it.
            else {
                **training.card(module),
                "batch_size": data.test_batch_size,
                "seed": module.seed,
            },
            "precision": str(trainer.precision),
            "device": str(module.device.type),
            "processes": trainer.world_size,
            "command": self.command,
            "started": _now(),
            "finished": None,
            "seconds": 0.0,
            "tokens": 0,
            "tokens_per_s": None,
        }

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the weights with those of an earlier session, and write the card.

        Raises:
            ConfigError: they are others.
        """
        assert isinstance(pl_module, RefineModule)
        assert self.folder is not None
        self._card["model"]["source"] = _source(trainer, pl_module)
        self._card["model"]["weights_hash"] = weights_hash(pl_module.policy)
        self._card["device"] = str(pl_module.device.type)
        if self._earlier is not None:
            refuse_differences(self._earlier, self._card, self.folder)
            for name in ("started", "seconds", "tokens"):
                self._card[name] = self._earlier.get(name) or self._card[name]
        self._started_at, self._new_tokens = time.monotonic(), 0
        self._writer = LineWriter(part_file(self.folder, self._name, trainer.global_rank))
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / CARD, self._card)
            if self.config_text is not None:
                (self.folder / "config.yaml").write_text(self.config_text, encoding="utf-8")

    # Answers -------------------------------------------------------------------------------------

    def on_test_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[Answer],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the answers of a batch, and write them."""
        self._write([scored_line(answer) for answer in outputs])

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As in ``test``."""
        self.on_test_start(trainer, pl_module)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[Answer],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the answers of a batch."""
        self._write([predicted_line(answer) for answer in outputs])

    def _write(self, lines: list[Line]) -> None:
        assert self._writer is not None
        self._writer.write(lines)
        self.num_answered += len(lines)
        self._new_tokens += sum(line["num_tokens"] for line in lines)

    # End -----------------------------------------------------------------------------------------

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Keep what there is."""
        if self._writer is None:
            return
        self._writer.close()
        if trainer.is_global_zero and self.folder is not None and self._started_at is not None:
            self._count_time(self._new_tokens)
            write_json(self.folder / CARD, self._card)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the answers in order, and sum up.

        This is the first hook after the rows that every process comes to: one without a batch is
        not asked for any other.
        """
        if stage not in ("test", "predict") or self.folder is None:
            return
        if self._writer is None:
            self.on_test_start(trainer, pl_module)
        assert self._writer is not None
        self._writer.close()
        trainer.strategy.barrier("answers written")
        if trainer.is_global_zero:
            self._finish(trainer, stage)
        trainer.strategy.barrier("evaluation finished")

    def _finish(self, trainer: Trainer, stage: str) -> None:
        assert self.folder is not None
        by_id = {line["id"]: line for line in read_all(self.folder, self._name)}
        lines = [by_id[row.id] for row in self._rows if row.id in by_id]
        rewrite(self.folder, self._name, lines)
        self._count_time(sum(line["num_tokens"] for line in lines if line["id"] not in self._kept))
        training = _test_time_training(trainer)
        if training is not None:
            self._card["test_time_training_totals"] = training.totals()
        complete = len(lines) == len(self._rows)
        self._card["finished"] = _now() if complete else None
        write_json(self.folder / CARD, self._card)
        console = Console(highlight=False)
        if stage == "test" and lines:
            summary = summarize(lines, level=float(self.level), resamples=int(self.resamples))
            write_json(self.folder / SCORES, summary.as_json())
            console.print(summary.table())
        cut = sum(line["cut_tokens"] > 0 for line in lines)
        if cut:
            console.print(f"{cut:,} of {len(lines):,} prompts were cut in the middle")
        if not complete:
            console.print(self.progress(), soft_wrap=True)
        console.print(f"run folder   {self.folder}", soft_wrap=True)

    def progress(self) -> str:
        """How many rows are answered, and how to go on."""
        if self.folder is None or self._started_at is None:
            return "no row was answered"
        answered = len(read_all(self.folder, self._name))  # by all processes
        return (
            f"{answered:,} of {self.num_rows:,} rows are answered; "
            f"continue with --out {self.folder}"
        )

    def _count_time(self, tokens: int) -> None:
        assert self._started_at is not None
        self._card["seconds"] += time.monotonic() - self._started_at
        self._card["tokens"] += tokens
        if self._card["seconds"] > 0:
            self._card["tokens_per_s"] = self._card["tokens"] / self._card["seconds"]


def predicted_line(answer: Answer) -> Line:
    """A line of ``predictions.jsonl``."""
    return {
        "id": answer.row.id,
        "prompt_tokens": answer.prompt_tokens,
        "cut_tokens": answer.cut_tokens,
        "output": answer.text,
        "num_tokens": answer.num_tokens,
        "finish": answer.finish,
    }


def scored_line(answer: Answer) -> Line:
    """A line of ``answers.jsonl``.

    Raises:
        DataError: the row has no references.
    """
    row = answer.row
    (_, released), *further = scores(row.task, answer.text, row.answers).items()
    line = predicted_line(answer)
    return {
        "id": line.pop("id"),
        "task": row.task,
        "length": row.length,
        **line,
        "references": list(row.answers),
        "score": released,
        "scores": dict(further),
    }


def _rule(task: str) -> str:
    rule = rule_of(task)
    return rule.name if rule.cut == "whole" else f"{rule.name} of {rule.cut}"


def find_evaluation(trainer: Trainer) -> Evaluation | None:
    """The trainer's evaluation, if it has one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, Evaluation)), None)


def _test_time_training(trainer: Trainer) -> TestTimeTraining | None:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, TestTimeTraining)), None)


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


def _rows_of(data: Any, stage: str) -> Sequence[TaskRow]:
    if not hasattr(data, "skip"):
        raise ConfigError(
            f"refine-pl {stage} needs rows of tasks"
            + ("" if data is None else f", and {type(data).__name__} has none"),
            where="data",
            way_out="data.class_path: refine_pl.data.TaskData",
        )
    rows: Sequence[TaskRow] = data.task_rows
    return rows


def _source(trainer: Trainer, module: RefineModule) -> str:
    """Where the weights come from, for people."""
    if trainer.ckpt_path:
        return str(trainer.ckpt_path)
    given = module.hparams
    backbone = given.get("backbone")
    arguments = backbone.get("init_args") if isinstance(backbone, dict) else None
    name = given.get("pretrained") or (arguments or {}).get("path_or_name")
    return str(name) if name else "fresh random weights"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
