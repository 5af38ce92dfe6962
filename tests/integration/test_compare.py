"""``refine-pl compare``: arms of one start, their differences, and what is refused."""

import json
from pathlib import Path

import command_line
import pytest
import torch
import yaml

from refine_pl.backbones import DeltaNet, save_pretrained
from refine_pl.cli import main


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a recipe, a start and documents, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    command_line.write_documents(tmp_path / "docs", number=12)
    edits = {
        "schedule.stages": {"a": {"iterations": 2}},
        "trainer.callbacks": command_line.GONE,
        "trainer.max_epochs": command_line.GONE,
        "data.init_args.num_validation_documents": 3,
    }
    command_line.write_config(tmp_path / "tiny.yaml", edits)
    backbone = command_line.CONFIG["model"]["backbone"]["init_args"]
    torch.manual_seed(7)
    save_pretrained(DeltaNet(**backbone, initializer_range=0.2), tmp_path / "start")
    return tmp_path


def compare(*words):
    own = ["compare", "--config", "tiny.yaml", "--from", "start", "--out", "out"]
    return main([*own, *words])


def test_two_arms_are_paired_and_a_second_call_runs_nothing(place, capfd):
    assert compare() == 0
    text = " ".join(capfd.readouterr().out.split())
    assert "ReFINE against SFT, 3 held-out documents" in text
    assert "SFT at temperature" in text
    assert "Beyond temperature" in text
    found = json.loads(Path("out/comparison.json").read_text())
    (arm,) = found["arms"]
    names = [measure["name"] for measure in arm["measures"]]
    assert {"val/ntp_loss", "val/expected_match", "val/accuracy", "val/similarity"} <= set(names)
    assert not any("reward" in name for name in names)
    runs = [Path("out/baseline/sft/seed_0"), Path("out/base/refine/seed_0")]
    for run in runs:
        settings = yaml.safe_load((run / "config.yaml").read_text())
        assert settings["model"]["pretrained"] == "start"
        assert settings["model"]["policy_weight"] == (0 if "sft" in str(run) else 0.2)
    before = [  # one start, measured alike
        [json.loads(line) for line in (run / "held_out.jsonl").read_text().splitlines()][:3]
        for run in runs
    ]
    of_both = [
        [{k: v for k, v in row["values"].items() if "reward" not in k} for row in rows]
        for rows in before
    ]
    assert of_both[0] == of_both[1]
    for measure in arm["measures"]:
        assert measure["low"] <= measure["difference"] <= measure["high"]
    # The control has the arm's next-token loss, where the baseline can have it.
    control = {m["name"]: m for m in arm["control"]}["val/ntp_loss"]
    assert abs(control["difference"]) < 1e-3 or arm["temperatures"][0] == 1
    times = {run: (run / "run.log").stat().st_mtime_ns for run in runs}
    assert compare() == 0
    assert times == {run: (run / "run.log").stat().st_mtime_ns for run in runs}
    assert json.loads(Path("out/comparison.json").read_text()) == found


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"model": {"validation": {"rollout_length": 3}}}, "changes model.validation"),
        ({"data": {"init_args": {"num_validation_documents": 4}}}, "changes data."),
    ],
)
def test_an_arm_that_could_not_be_compared_is_refused(place, capsys, section, says):
    Path("arm.yaml").write_text(yaml.safe_dump(section))
    assert compare("--arms", "arm.yaml", "--dry_run") == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not Path("out").exists()


def test_the_commands_of_matched_computing(place, capsys):
    Path("long.yaml").write_text(yaml.safe_dump({"model": {"rollouts_per_position": 8}}))
    assert (
        compare("--arms", "long.yaml", "--compute_matched", "--seeds", "0", "1", "--dry_run") == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("refine-pl fit")]) == 6
    longer = [line for line in lines if "sft_for_long" in line]
    assert len(longer) == 2
    assert all("--schedule.stages.a.iterations" in line for line in longer)
    assert all("--model.policy_weight 0" in line for line in longer)
    assert compare("--arms", "sft", "--dry_run") == 2
    assert compare("--arms", "refine", "--dry_run", "--from", "nothing.ckpt") == 2
