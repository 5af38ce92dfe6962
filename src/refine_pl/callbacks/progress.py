"""The progress of a run: a bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from typing import Any

from jsonargparse.typing import PositiveFloat
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from refine_pl.callbacks.answering_progress import AnsweringProgress
from refine_pl.task_records import TaskBatch
from refine_pl.training.metrics import Metric, metrics
from refine_pl.training.module import RefineModule
from refine_pl.training.schedule import find_schedule

LABEL_WIDTH = 12  # so that the bars stay in place when the stage changes


class ProgressBar(lightning_callbacks.ProgressBar):
    """Shows stage, iteration, loss, reward and tokens/s; in ``test`` and ``predict`` rows.

    Args:
        line_every_s: where the output is not a terminal, a line is printed this often.
    """

    def __init__(self, line_every_s: PositiveFloat = 10.0) -> None:
        super().__init__()
        self.line_every_s = line_every_s
        self._enabled = True
        self._console = Console(highlight=False)
        self._bar: Progress | None = None
        self._train_task: TaskID | None = None
        self._validation_task: TaskID | None = None
        self._answering: AnsweringProgress | None = None
        self._total: int | None = None
        self._line_at = self._started_at = 0.0
        self._first_iteration = 0

    @property
    def is_enabled(self) -> bool:
        """Lightning asks for it when a module prints."""
        return self._enabled

    def enable(self) -> None:
        """Show the progress from now on."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing from now on."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a message without breaking the bar."""
        bar = self._answering.bar if self._answering else self._bar
        console = bar.console if bar else self._console
        console.print(*(str(arg) for arg in args), markup=False, soft_wrap=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar, or the clock of the lines."""
        assert isinstance(pl_module, RefineModule)
        self._total = total_iterations(trainer, pl_module)
        self._first_iteration = pl_module.iteration
        self._started_at = self._line_at = time.monotonic()
        if self._enabled and self._console.is_terminal:
            self._start_bar()
            self._train_task = self._add_task("training", self._total, pl_module.iteration)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show the state after an iteration."""
        assert isinstance(pl_module, RefineModule)
        if not self._enabled:
            return
        metrics = shown_metrics(trainer, pl_module, isinstance(batch, TaskBatch))
        if self._bar is not None and self._train_task is not None:
            self._bar.update(
                self._train_task,
                description=f"{stage_name(trainer, pl_module):<{LABEL_WIDTH}}",
                completed=pl_module.iteration,
                metrics="  ".join(metrics),
            )
            return
        now = time.monotonic()
        if now - self._line_at >= self.line_every_s or pl_module.iteration == self._total:
            self._line_at = now
            total = "" if self._total is None else f"/{self._total}"
            parts = [f"{stage_name(trainer, pl_module)} {pl_module.iteration}{total}", *metrics]
            self.print("  ".join([*parts, *self._time_left(pl_module.iteration, now)]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar as it is."""
        self._stop_bar()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back before the error is shown."""
        self._stop_bar()
        self._stop_answering()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show a second bar."""
        if not self._enabled or trainer.sanity_checking or not self._console.is_terminal:
            return
        if self._bar is None:
            self._start_bar()
        total = sum(trainer.num_val_batches)
        known = None if total == float("inf") else int(total)
        self._validation_task = self._add_task("validation", known)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the second bar."""
        if self._bar is not None and self._validation_task is not None:
            self._bar.advance(self._validation_task)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the second bar away."""
        if self._bar is not None and self._validation_task is not None:
            self._bar.remove_task(self._validation_task)
            self._validation_task = None
            if self._train_task is None:
                self._stop_bar()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show how many rows are answered."""
        data = getattr(trainer, "datamodule", None)
        rows = getattr(data, "task_rows", None)
        if self._enabled and rows is not None:
            self._answering = AnsweringProgress(
                self._console,
                len(rows) - len(getattr(data, "skip", ())),
                trainer.world_size,
                self.line_every_s,
                self.print,
            )

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the bar."""
        if self._answering is not None:
            self._answering.advance(len(outputs), sum(answer.num_tokens for answer in outputs))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar as it is."""
        self._stop_answering()

    # Rows are answered in ``predict`` as they are in ``test``.
    on_predict_start = on_test_start
    on_predict_batch_end = on_test_batch_end
    on_predict_end = on_test_end

    def _stop_answering(self) -> None:
        if self._answering is not None:
            self._answering.stop()
        self._answering = None

    def _start_bar(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=self._console,
        )
        self._bar.start()

    def _add_task(self, label: str, total: int | None, completed: int = 0) -> TaskID:
        assert self._bar is not None
        label = f"{label:<{LABEL_WIDTH}}"
        return self._bar.add_task(label, total=total, completed=completed, metrics="")

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._train_task = self._validation_task = None

    def _time_left(self, iteration: int, now: float) -> list[str]:
        done = iteration - self._first_iteration
        if self._total is None or done == 0 or iteration >= self._total:
            return []
        seconds = (now - self._started_at) / done * (self._total - iteration)
        return [f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"]


def shown_metrics(trainer: Trainer, module: RefineModule, answers: bool) -> list[str]:
    """The metrics of the bar as ``name value``.

    No reward in a stage without rollouts, and nothing about answers unless the batch had some: what
    was logged last is still there in a later stage.
    """
    values = trainer.callback_metrics
    rollouts = module.settings.weights.needs_rollouts

    def is_shown(metric: Metric) -> bool:
        if metric.name.startswith("reward/"):
            return rollouts
        return answers or not metric.of_answers

    return [
        f"{metric.bar} {metric.bar_form.format(float(values[metric.name]))}"
        for metric in metrics()
        if metric.bar and metric.name in values and is_shown(metric)
    ]


def stage_name(trainer: Trainer, module: RefineModule) -> str:
    """The stage that the last iteration belonged to; the phase of a run without a schedule."""
    schedule = find_schedule(trainer)
    return module.phase.name if schedule is None else schedule.name_at(module.iteration - 1)


def total_iterations(trainer: Trainer, module: RefineModule) -> int | None:
    """Batches until the run ends, those before a resume included; None if nothing ends it."""
    limits = []
    schedule = find_schedule(trainer)
    if schedule is not None:
        limits.append(schedule.num_iterations)
    if (trainer.max_epochs or -1) > 0 and trainer.num_training_batches != float("inf"):
        limits.append(int(trainer.max_epochs or 0) * int(trainer.num_training_batches))
    batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    if trainer.max_steps > 0 and isinstance(batch_size, int):
        updates = module.phase.updates(module.sizes, batch_size)
        if updates is not None:
            limits.append(-(-trainer.max_steps // updates))
    return min(limits, default=None)
