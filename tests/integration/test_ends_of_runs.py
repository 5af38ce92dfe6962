"""However a run ends: by its iterations, updates, time or budget, the end is measured once."""

import json
import random
from pathlib import Path

import pytest
from command_line import GONE, run, write_config, write_documents

from refine_pl.commands.schedule_options import shared_out
from refine_pl.errors import ConfigError

STAGES = {"warm-up": {"iterations": 4, "policy_weight": 0.0}, "refine": {"iterations": 2}}
VALIDATED = {"data.init_args.num_validation_documents": 2}
OWN = {
    "trainer.max_epochs": -1,
    "trainer.enable_progress_bar": False,
    "trainer.callbacks": GONE,
} | VALIDATED
BUDGET = {"class_path": "refine_pl.callbacks.TokenBudget", "init_args": {"max_tokens_seen": 150}}


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """A function that trains, and returns what was printed and the validated iterations."""
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "docs", number=8)
    write_config(tmp_path / "plain.yaml", OWN)
    write_config(tmp_path / "staged.yaml", OWN | {"schedule": {"stages": STAGES}})

    def train(file, *words):
        outcome = run("fit", "--config", file, *words)
        assert outcome.code == 0, outcome.stderr
        line = next(li for li in outcome.stdout.splitlines() if li.startswith("run folder"))
        summary = json.loads((Path(line.split()[-1]) / "summary.json").read_text())
        return outcome.stdout, [entry["iteration"] for entry in summary["validations"]]

    return train


@pytest.mark.parametrize("file", ["plain.yaml", "staged.yaml"])
@pytest.mark.parametrize(
    ("words", "end"),
    [
        (("--trainer.max_steps", 2), 2),
        (("--trainer.callbacks", json.dumps([BUDGET])), 2),
        (("--trainer.max_epochs", 1), 3),  # two of eight documents are held out, two are a batch
        (("--iterations", 3), 3),
    ],
)
def test_the_end_is_measured_once_whatever_it_is(fit, file, words, end):
    stdout, validated = fit(file, *words)
    assert validated[-1] == end
    assert validated.count(end) == 1
    assert "next-token loss" in stdout


def test_iterations_are_shared_out_over_the_stages(fit):
    stdout, validated = fit("staged.yaml", "--iterations", 3)
    assert validated == [0, 2, 3]
    assert "stage 'warm-up', 2 iterations" in stdout
    assert "stage 'refine', 1 iteration:" in stdout


def test_shares_are_exact_and_none_is_empty():
    draws = random.Random(7)
    for _ in range(300):
        lengths = {str(n): draws.choice([1, 2, 7, 80, 5000]) for n in range(draws.randint(1, 6))}
        total = draws.randint(len(lengths), 400)
        shares = shared_out(total, lengths)
        assert sum(shares.values()) == total
        assert min(shares.values()) >= 1
        for name, share in shares.items():
            exact = total * lengths[name] / sum(lengths.values())
            assert share <= max(1, exact + 1), (lengths, total, shares)
    assert shared_out(6, {"a": 4, "b": 2}) == {"a": 4, "b": 2}  # again gives the same


def test_more_stages_than_iterations_are_refused(fit):
    with pytest.raises(ConfigError, match="iterations is 1, and the schedule has 2 stages"):
        shared_out(1, {"a": 5, "b": 5})
    outcome = run("fit", "--config", "staged.yaml", "--iterations", 1)
    assert outcome.code == 2
    assert "the schedule has 2 stages" in outcome.stderr


def test_a_checkpoint_that_has_made_them_is_refused(fit):
    fit("plain.yaml", "--iterations", 2)
    (last,) = Path("runs").rglob("last.ckpt")
    for words in (("--iterations", 2), ("--iterations", 1)):
        outcome = run("fit", "--config", "plain.yaml", "--ckpt_path", last, *words)
        assert outcome.code == 2
        assert "nothing is left to train" in outcome.stderr
    outcome = run("fit", "--config", "plain.yaml", "--ckpt_path", last, "--iterations", 3)
    assert outcome.code == 0, outcome.stderr


def test_they_beat_the_epochs_of_a_file_but_not_those_of_an_option(fit):
    write_config(Path("epoch.yaml"), OWN | {"trainer.max_epochs": 1})
    assert fit("epoch.yaml", "--iterations", 4)[1][-1] == 4
    assert fit("epoch.yaml", "--iterations", 4, "--trainer.max_epochs", 1)[1][-1] == 3


def test_what_is_not_a_number_of_iterations_is_refused(fit):
    for value in ("0", "-3", "1.5", "many"):
        outcome = run("fit", "--config", "plain.yaml", "--iterations", value)
        assert outcome.code == 2
        assert "iterations" in outcome.stderr
