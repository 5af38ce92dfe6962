"""What a run achieved, in a short table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from refine_pl.training.module import RefineModule
from refine_pl.training.schedule import find_schedule

# The metric, what it is called here, and its format.
ROWS = (
    ("val/ntp_loss", "NTP loss, nats per token", "{:.4f}"),
    ("val/accuracy", "accuracy, most likely token", "{:.2%}"),
    ("val/exact_match", "exact match of rollout tokens", "{:.2%}"),
    ("val/sft_loss", "loss of answers, nats per token", "{:.4f}"),
    ("val/answer_accuracy", "accuracy of answer tokens", "{:.2%}"),
    ("val/score", "score of own answers", "{:.2%}"),
    ("val/reward", "reward of rollouts", "{:.4f}"),
)
PART = "val/reward_"
FILE = "summary.json"


class RunSummary(Callback):
    """Prints the validation numbers of before, between and after at the end of a run.

    They are also kept in ``summary.json`` in the run folder, after every validation. A resumed run
    starts from those that the checkpoint holds. One that followed the checkpoint at the same
    iteration is read from the ``summary.json`` of the run folder that the checkpoint lies in.
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._folder: Path | None = None

    def state_dict(self) -> dict[str, Any]:
        """The validations so far, so that a resumed run shows them too."""
        return {"entries": self.entries}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the validations of the run that is resumed."""
        self.entries = list(state_dict["entries"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run folder; every process must ask for it."""
        folder = trainer.log_dir
        self._folder = Path(folder) if folder else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for a validation between the checkpoint and the next batch: it is not run again."""
        assert isinstance(pl_module, RefineModule)
        iterations = {entry["iteration"] for entry in self.entries}
        if trainer.ckpt_path is not None and pl_module.iteration not in iterations:
            run = Path(trainer.ckpt_path).absolute().parent.parent
            self.entries += recorded(run, pl_module.iteration)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the numbers of a validation inside ``fit``."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, RefineModule)
        schedule = find_schedule(trainer)
        label = schedule.boundary(pl_module.iteration) if schedule is not None else None
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        entry = {"label": label, "iteration": pl_module.iteration, "metrics": values}
        self.entries = [e for e in self.entries if e["iteration"] < pl_module.iteration]
        self.entries.append(entry)
        if trainer.is_global_zero and self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"validations": self.entries}, indent=2)
            (self._folder / FILE).write_text(text + "\n", encoding="utf-8")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table, the run folder and how to look at it."""
        if not trainer.is_global_zero:
            return
        console = Console(highlight=False)
        if self.entries:
            console.print(summary_table(self.entries))
        if self._folder is not None:
            console.print(f"run folder   {self._folder}", soft_wrap=True)
            console.print(
                f"look at it   tensorboard --logdir {self._folder.parent}", soft_wrap=True
            )


def recorded(folder: Path, iteration: int) -> list[dict[str, Any]]:
    """The validation after ``iteration`` iterations in a run folder's record, or none.

    A record that is missing or damaged is no reason to refuse a resume.
    """
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return [entry for entry in content["validations"] if entry["iteration"] == iteration][-1:]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def summary_table(entries: list[dict[str, Any]]) -> Table:
    """One column for each named validation, or for the first and the last if none has a name."""
    named = [entry for entry in entries if entry["label"]]
    columns = named or [entries[0], *entries[1:][-1:]]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("held out")
    for entry in columns:
        table.add_column(entry["label"] or f"iteration {entry['iteration']}", justify="right")
    parts = sorted({name for entry in columns for name in entry["metrics"] if PART in name})
    own = [(name, f"  {name.removeprefix(PART)}", "{:.4f}") for name in parts]
    for name, title, form in [*ROWS, *(own if len(own) > 1 else [])]:
        values = [entry["metrics"].get(name) for entry in columns]
        if any(value is not None for value in values):
            table.add_row(title, *("-" if v is None else form.format(v) for v in values))
    return table
