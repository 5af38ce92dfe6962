"""Every file in configs/ is found, parsed and built, and run for some updates at a small size."""

import json
from pathlib import Path

import command_line
import pytest
import yaml

from refine_pl.commands import lightning_cli

CONFIGS = Path(__file__).parents[2] / "configs"


def recipes(folder):
    return sorted(folder.rglob("*.yaml"))


def names(folder):
    return [str(path.relative_to(folder)) for path in recipes(folder)]


def build(path, monkeypatch):
    """Parse and make everything, without running it."""
    made = []
    monkeypatch.setattr(
        lightning_cli.RefineCLI, "_run_subcommand", lambda self, _: made.append(self)
    )
    outcome = command_line.run("fit", "--config", path)
    return outcome, made


def shrunk(config, folder):
    """The recipe with small sizes: its parts, phases and callbacks stay."""
    config["trainer"]["accelerator"] = "cpu"
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(folder / "runs")
    for callback in config["trainer"]["callbacks"]:
        if callback["class_path"].endswith("PhaseSchedule"):
            for phase in callback["init_args"]["phases"]:
                phase["iterations"] = 2
        if callback["class_path"].endswith("RolloutRecorder"):
            callback["init_args"]["every_n_iterations"] = 1
    sizes = {"hidden_size": 32, "num_hidden_layers": 2}
    config["model"]["backbone"]["init_args"] |= sizes
    config["model"] |= {"num_segments": 2, "minibatch_size": 2, "microbatch_size": 1}
    config["data"]["init_args"] |= {
        "sequence_length": 160,
        "min_tokens": 100,
        "batch_size": 4,
        "num_validation_documents": 2,
        "corpus": {"class_path": "refine_pl.data.Files", "init_args": {"paths": "docs/*.txt"}},
        "cache_dir": str(folder / "cache"),
    }
    return config


def test_all_are_found():
    found = names(CONFIGS)
    assert len(found) == len(set(found)) == len(list(CONFIGS.rglob("*.y*ml")))
    assert "tiny_mid.yaml" in found
    assert len(found) >= 2


@pytest.mark.parametrize("name", names(CONFIGS))
def test_recipe_is_parsed_and_built(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    outcome, made = build(CONFIGS / name, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    assert len(made) == 1
    assert sum(p.numel() for p in made[0].model.policy.parameters()) > 100_000
    assert not list(tmp_path.iterdir())


def test_a_spoilt_recipe_would_be_noticed(monkeypatch, tmp_path):
    text = (CONFIGS / "tiny_mid.yaml").read_text().replace("num_segments:", "num_segmants:")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "spoilt.yaml").write_text(text)
    assert names(tmp_path) == ["deep/spoilt.yaml"]
    outcome, made = build(tmp_path / "deep" / "spoilt.yaml", monkeypatch)
    assert outcome.code == 2
    assert not made
    assert "num_segments" in outcome.stderr


@pytest.mark.parametrize("name", names(CONFIGS))
def test_recipe_runs(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command_line.write_documents(tmp_path / "docs", number=12, length=400)
    config = shrunk(yaml.safe_load((CONFIGS / name).read_text()), tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    outcome = command_line.run("fit", "--config", tmp_path / "small.yaml")
    assert outcome.code == 0, outcome.stderr
    (run,) = (tmp_path / "runs").glob("*/version_0")
    assert (run / "config.yaml").exists()
    assert list(run.glob("checkpoints/last.ckpt"))
    assert list(run.glob("events.out.tfevents.*"))
    rollouts = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert rollouts
    assert str(run.relative_to(tmp_path)) in outcome.stdout.replace("\n", "")
