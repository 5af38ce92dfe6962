"""The progress of a run: a bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from typing import Any

from jsonargparse.typing import PositiveFloat
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from rich.console import Console

from refine_pl.callbacks.bars import Bars, TaskID
from refine_pl.task_records import TaskBatch
from refine_pl.training.metrics import Metric, metrics
from refine_pl.training.module import RefineModule
from refine_pl.training.schedule import find_schedule


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
        self._bar: Bars | None = None
        self._task: TaskID | None = None  # iterations of training, or rows of test and predict
        self._validation_task: TaskID | None = None
        self._total: int | None = None
        self._first = self._rows = self._tokens = 0
        self._line_at = self._started_at = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """The settings: a terminal and a bar on it have locks, and belong to one process."""
        return {"line_every_s": self.line_every_s, "_enabled": self._enabled}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A bar like a new one, with the settings of the other."""
        self.__init__(state["line_every_s"])  # type: ignore[misc]
        self._enabled = state["_enabled"]

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
        self._console.print(*(str(arg) for arg in args), markup=False, soft_wrap=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar, or the clock of the lines."""
        assert isinstance(pl_module, RefineModule)
        self._begin("training", total_iterations(trainer, pl_module), pl_module.iteration)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Show the state after an iteration."""
        assert isinstance(pl_module, RefineModule)
        if self._enabled:
            shown = shown_metrics(trainer, pl_module, isinstance(batch, TaskBatch))
            self._show(stage_name(trainer, pl_module), pl_module.iteration, shown)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar as it is."""
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back before the error is shown."""
        self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show a second bar."""
        if not trainer.sanity_checking:
            total = sum(trainer.num_val_batches)
            known = None if total == float("inf") else int(total)
            self._validation_task = self._add_task("validation", known)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any
    ) -> None:
        """Move the second bar."""
        if self._bar is not None and self._validation_task is not None:
            self._bar.advance(self._validation_task)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the second bar away."""
        if self._bar is not None and self._validation_task is not None:
            self._bar.remove_task(self._validation_task)
            self._validation_task = None
            if self._task is None:
                self._stop()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count rows; those that were answered before are not among them."""
        data = getattr(trainer, "datamodule", None)
        rows = getattr(data, "task_rows", None)
        self._rows = self._tokens = 0
        total = None if rows is None else len(rows) - len(getattr(data, "skip", ()))
        self._begin("answered", total)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Show how many rows are answered, as if all processes were as fast as this one."""
        rows = self._rows + len(outputs) * trainer.world_size
        self._rows = rows if self._total is None else min(rows, self._total)
        self._tokens += sum(answer.num_tokens for answer in outputs) * trainer.world_size
        seconds = max(time.monotonic() - self._started_at, 1e-9)
        if self._enabled:
            self._show("answered", self._rows, [f"tokens/s {self._tokens / seconds:,.0f}"])

    # Rows are answered in ``predict`` as they are in ``test``.
    on_predict_start = on_test_start
    on_predict_batch_end = on_test_batch_end
    on_test_end = on_predict_end = on_train_end

    def _begin(self, label: str, total: int | None, done: int = 0) -> None:
        self._total, self._first = total, done
        self._started_at = self._line_at = time.monotonic()
        self._task = self._add_task(label, total, done)

    def _add_task(self, label: str, total: int | None, done: int = 0) -> TaskID | None:
        """A bar, if bars are shown."""
        if not self._enabled or not self._console.is_terminal:
            return None
        if self._bar is None:
            self._bar = Bars(self._console)
            self._bar.start()
        return self._bar.add(label, total, done)

    def _show(self, label: str, done: int, words: list[str]) -> None:
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.show(self._task, label, done, words)
        elif now - self._line_at >= self.line_every_s or done == self._total:
            self._line_at = now
            total = "" if self._total is None else f"/{self._total}"
            self.print("  ".join([f"{label} {done}{total}", *words, *self._time_left(done, now)]))

    def _time_left(self, done: int, now: float) -> list[str]:
        made = done - self._first
        if self._total is None or made == 0 or done >= self._total:
            return []
        seconds = int((now - self._started_at) / made * (self._total - done))
        return [f"{seconds // 60}:{seconds % 60:02d} left"]

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = self._validation_task = None


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
