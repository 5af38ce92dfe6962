"""A run that breaks after its last batch is closed by the next attempt, in the same folder.

It trains nothing, measures what was not measured, and leaves what the unbroken run leaves.
"""

import json
from pathlib import Path

import pytest
import torch
from command_line import CONFIG, run, write_config, write_documents

from refine_pl.sweep.process import clear, prepare

BREAKS = """
from pathlib import Path

from lightning.pytorch import Callback


def breaks(hook):
    def broken(self, trainer, module, *_):
        if Path("break").exists() and Path("break").read_text() == f"{hook} {module.iteration}":
            Path("break").unlink()
            raise RuntimeError("broken")

    return broken


class Breaks(Callback):
    on_validation_start, on_validation_end, on_train_end, on_fit_end = map(
        breaks, ("validation_start", "validation_end", "train_end", "fit_end")
    )
"""
TOTAL = 3  # iterations, an epoch
SCHEDULE = {"stages": {"warm-up": {"iterations": 2, "policy_weight": 0.0}, "b": {"iterations": 1}}}
BUDGET = "refine_pl.callbacks.TokenBudget"
ENDS = {
    "plain": ["--iterations", TOTAL],
    "staged": [],
    "updates": ["--trainer.max_steps", TOTAL],
    "budget": ["--trainer.callbacks+", BUDGET, "--trainer.callbacks.max_tokens_seen", 250],
    "epochs": ["--trainer.max_epochs", 1],
    "epochs without validation": ["--trainer.max_epochs", 1, "--trainer.limit_val_batches", 0],
}
MEASURED = [end for end in ENDS if "without" not in end]
BREAKING = [
    *((end, hook) for end in MEASURED for hook in ("validation_start", "train_end")),
    *(("plain", hook) for hook in ("validation_end", "fit_end")),
    ("epochs without validation", "train_end"),
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "docs", number=8)
    (tmp_path / "breaks.py").write_text(BREAKS)
    keeper = CONFIG["trainer"]["callbacks"][0] | {
        "init_args": {"save_last": True, "every_n_train_steps": 1}
    }
    names = ("breaks.Breaks", "refine_pl.callbacks.RunSummary", "refine_pl.callbacks.RandomState")
    edits = {
        "trainer.max_epochs": -1,
        "trainer.callbacks": [*({"class_path": name} for name in names), keeper],
        "data.init_args.num_validation_documents": 2,
    }
    write_config(tmp_path / "plain.yaml", edits)
    write_config(tmp_path / "staged.yaml", edits | {"schedule": SCHEDULE})


def fit(end, folder, *words):
    file = "staged.yaml" if end == "staged" else "plain.yaml"
    logger = "lightning.pytorch.loggers.CSVLogger"
    words = ["--trainer.logger", logger, "--trainer.logger.save_dir", folder, *words]
    words += ["--trainer.logger.name", "a", "--trainer.logger.version", "b"]
    return run("fit", "--config", file, *ENDS[end], *words)


def left(folder):
    """What a finished run leaves: the weights, the iterations and updates made, validations."""
    checkpoint = torch.load(folder / "a/b/checkpoints/last.ckpt", weights_only=True)
    summary = folder / "a/b/summary.json"
    validations = json.loads(summary.read_text())["validations"] if summary.exists() else []
    numbers = (checkpoint["refine_pl"]["iteration"], checkpoint["global_step"])
    return checkpoint["state_dict"], numbers, validations


@pytest.mark.parametrize(("end", "hook"), BREAKING)
def test_what_is_missing_is_made_up_for(place, end, hook):
    whole, broken = Path("whole"), Path("broken")
    assert fit(end, whole).code == 0
    weights, numbers, validations = left(whole)
    assert numbers[0] == TOTAL
    assert [entry["iteration"] for entry in validations][-1:] in ([], [TOTAL])
    Path("break").write_text(f"{hook} {TOTAL}")
    with pytest.raises(RuntimeError, match="broken"):
        fit(end, broken)
    curves = (broken / "a/b/metrics.csv").read_text()
    checkpoint = prepare(broken / "a/b")
    outcome = fit(end, broken, "--ckpt_path", checkpoint)
    assert outcome.code == 0, outcome.stderr
    clear(broken / "a/b")
    assert (broken / "a/b/metrics_1.csv").read_text() == curves
    again = left(broken)
    assert again[1:] == (numbers, validations)
    assert all(torch.equal(again[0][name], value) for name, value in weights.items())
    assert bool(validations) == (end in MEASURED)
    if validations:
        assert "next-token loss" in outcome.stdout


def test_a_run_of_another_folder_is_refused(place):
    assert fit("plain", "first").code == 0
    outcome = fit("plain", "second", "--ckpt_path", "first/a/b/checkpoints/last.ckpt")
    assert outcome.code == 2
    assert "nothing is left to train" in outcome.stderr
