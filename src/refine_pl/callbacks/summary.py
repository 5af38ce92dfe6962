"""What a run achieved, in a short table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from refine_pl.callbacks.showing import looking_hints
from refine_pl.errors import DataError
from refine_pl.training.counters import Counters
from refine_pl.training.metrics import closing_names, format_value, title_of
from refine_pl.training.module import RefineModule
from refine_pl.training.record_files import (
    append_records,
    drop_later_lines,
    read_record,
    write_json,
)
from refine_pl.training.run_folder import HELD_OUT, SUMMARY, Summary, Validation, folder_of
from refine_pl.training.run_place import run_directory
from refine_pl.training.schedule import find_schedule


class RunSummary(Callback):
    """Prints the validation numbers of before, between and after at the end of a run.

    They are also kept in ``summary.json`` in the run folder, after every validation, and what was
    measured of each held-out sequence in ``held_out.jsonl``: a
    :class:`~refine_pl.training.run_folder.HeldOut` on each line. A resumed run
    starts from those that the checkpoint holds. One that followed the checkpoint at the same
    iteration is read from the ``summary.json`` of the run folder that the checkpoint lies in.
    """

    def __init__(self) -> None:
        self.validations: list[Validation] = []
        self._folder: Path | None = None

    def state_dict(self) -> dict[str, Any]:
        """The validations so far, so that a resumed run shows them too."""
        return {"entries": [asdict(validation) for validation in self.validations]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the validations of the run that is resumed."""
        self.validations = [Validation(**entry) for entry in state_dict["entries"]]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run folder; every process must ask for it."""
        self._folder = run_directory(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for a validation between the checkpoint and the next batch: it is not run again."""
        assert isinstance(pl_module, RefineModule)
        held_out = None if self._folder is None else self._folder / HELD_OUT
        if trainer.is_global_zero and held_out is not None and held_out.exists():
            drop_later_lines(held_out, pl_module.iteration)
        iterations = {validation.iteration for validation in self.validations}
        if trainer.ckpt_path is not None and pl_module.iteration not in iterations:
            self.validations += recorded(folder_of(trainer.ckpt_path), pl_module.iteration)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the numbers of a validation inside ``fit``."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, RefineModule)
        now = pl_module.iteration
        schedule = find_schedule(trainer)
        label = schedule.boundary(now) if schedule is not None else None
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        earlier = [validation for validation in self.validations if validation.iteration < now]
        self.validations = [*earlier, Validation(label, now, values)]
        if trainer.is_global_zero and self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(self._folder / SUMMARY, Summary(self.validations))
            rows = (replace(row, iteration=now, label=label) for row in pl_module.held_out)
            append_records(self._folder / HELD_OUT, rows)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table, the run folder and how to look at it."""
        if not trainer.is_global_zero:
            return
        console = Console(highlight=False)
        if self.validations:
            console.print(summary_table(self.validations))
        assert isinstance(pl_module, RefineModule)
        for label, text in went_wrong(pl_module.counters):
            console.print(f"{label:<12} {text}", soft_wrap=True)
        if self._folder is not None:
            console.print(f"run folder   {self._folder}", soft_wrap=True)
            for hint in looking_hints(trainer.loggers, self._folder):
                console.print(f"look at it   {hint}", soft_wrap=True)


def went_wrong(counters: Counters) -> list[tuple[str, str]]:
    """What a run passed over and went on, with a label each; nothing if all went well."""
    lines = []
    if counters.skipped_steps:
        number, steps = counters.skipped_steps, counters.updates
        text = f"{number:,} of {steps:,} steps: the gradient was NaN or infinite"
        lines.append(("skipped", text))
    if counters.reward_faults:
        faults = (f"{name} {number:,}" for name, number in counters.reward_faults.items())
        lines.append(("as 0", f"micro-batches in which a reward failed: {', '.join(faults)}"))
    return lines


def recorded(folder: Path, iteration: int) -> list[Validation]:
    """The validation after ``iteration`` iterations in a run folder's record, or none.

    A record that is missing or damaged is not a reason to refuse a resume.
    """
    try:
        found = read_record(folder / SUMMARY, Summary).validations
    except DataError:
        return []
    return [validation for validation in found if validation.iteration == iteration][-1:]


def summary_table(validations: Sequence[Validation]) -> Table:
    """One column for each validation at a border of stages, or for the first and the last."""
    columns = Summary(list(validations)).at_borders()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("held out")
    for validation in columns:
        table.add_column(validation.name, justify="right")
    for name in closing_names({name for validation in columns for name in validation.metrics}):
        values = (validation.metrics.get(name) for validation in columns)
        table.add_row(title_of(name), *(format_value(name, value) for value in values))
    return table
