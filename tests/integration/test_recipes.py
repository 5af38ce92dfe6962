"""Every recipe in configs/ is found, parsed and built, and run for some updates at a small size."""

import json
import re

import command_line
import pytest
import yaml
from recipes import CONFIGS, OVERLAYS, PUBLISHED, model_folder, recipes, write_small

from refine_pl.commands import evaluating, lightning_cli

NAMES = [path.name for path in recipes()]
TESTED = [name for name in NAMES if name.endswith("_ttt.yaml")]
TRAINED = [name for name in NAMES if name not in TESTED]
PUBLISHED_FAMILIES = ("dn1.3b", "gdn1.3b", "lact760m", "qwen3.5_0.8b")
TINY = (
    "tiny_mid",
    "gdn_tiny_mid",
    "lact_tiny_mid",
    "qwen3.5_tiny_mid",
    "olmo_hybrid_tiny_mid",
    "tiny_post",
    "tiny_ttt",
)
MAX_LINES = 70  # without the header
ADAM = {"lr": 1e-6, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}

# By phase: batch, mini-batch, length, weights and rewards.
PAPER = {
    "mid": (128, 32, 16384, (1.0, 0.2), {"EmbeddingSimilarity"}),
    "post": (64, 16, 8160, (1.0, 0.2), {"EmbeddingSimilarity", "ExactMatch"}),
    "ttt": (8, 4, 16352, (1.0, 0.4), {"ExactMatch"}),
}


def read(name):
    return yaml.safe_load((CONFIGS / name).read_text())


def loaded(name):
    """The published model that a recipe names, if it does."""
    found = re.search(r"^ +path_or_name: (\S+)", (CONFIGS / name).read_text(), re.MULTILINE)
    return found and found[1]


def draws(name):
    """Whether a recipe has a stage with rollouts."""
    stages = read(name).get("schedule", {}).get("stages", {"all": {}})
    return any(stage.get("policy_weight") != 0 for stage in stages.values())


def command_of(name):
    return "test" if name.endswith("_ttt.yaml") else "fit"


def build(path, monkeypatch, *options):
    """Parse and make everything, without running it."""
    made = []
    for cli in (lightning_cli.RefineCLI, evaluating.EvaluationCLI):
        monkeypatch.setattr(cli, "_run_subcommand", lambda self, _: made.append(self))
    outcome = command_line.run(command_of(path.name), "--config", path, *options)
    return outcome, made


def test_all_are_found():
    assert len(NAMES) == len(set(NAMES)) >= 15
    expected = {f"{family}_{phase}.yaml" for family in PUBLISHED_FAMILIES for phase in PAPER}
    assert expected | {f"{name}.yaml" for name in TINY} <= set(NAMES)
    assert {name for name in NAMES if loaded(name)} == expected
    everything = {path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.y*ml")}
    overlays = {path for path in everything if path.parts[0] in OVERLAYS}
    assert {str(path) for path in everything - overlays} == set(NAMES)
    assert {name for name in NAMES if not draws(name)} == {"tiny_start.yaml"}


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_parsed_and_built(name, monkeypatch, tmp_path):
    """As it is, but for published weights: a small model of the same kind is in their place."""
    monkeypatch.chdir(tmp_path)
    published = loaded(name)
    options = []
    if published:
        options = ["--model.backbone.path_or_name", model_folder(published, tmp_path)]
    elif "backbone" not in read(name)["model"]:
        published = "fla-hub/delta_net-1.3B-100B"
        options = ["--model.pretrained", model_folder(published, tmp_path)]
    outcome, made = build(CONFIGS / name, monkeypatch, *options)
    assert outcome.code == 0, outcome.stderr
    (cli,) = made
    policy = cli.model.policy
    if published:
        assert type(policy) is PUBLISHED[published][0]
        assert policy.activation_checkpointing == bool(loaded(name))
        assert [path.name for path in tmp_path.iterdir()] == ["models"]
    else:
        assert sum(p.numel() for p in policy.parameters()) > 100_000
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_header(name):
    """What it is, the command, what it needs, and which results it is for."""
    lines = (CONFIGS / name).read_text().splitlines()
    header = "\n".join(lines[: lines.index("")])
    assert all(line.startswith("#") for line in header.splitlines())
    assert len(lines) - lines.index("") - 1 <= MAX_LINES
    assert f"refine-pl {command_of(name)} --config {name.removesuffix('.yaml')}" in header
    assert "Needs" in header
    if loaded(name):
        assert "paper" in header
        assert "Memory" in header
    assert "configs/" not in header  # an installed package has none
    for mentioned in re.findall(r"--config (\S+)", header):
        assert (CONFIGS / f"{mentioned}.yaml").is_file(), mentioned


@pytest.mark.parametrize("phase", PAPER)
@pytest.mark.parametrize("family", PUBLISHED_FAMILIES)
def test_published_hyper_parameters(family, phase):
    """Those of the method's third section, most of them as defaults."""
    batch_size, minibatch_size, length, weights, rewards = PAPER[phase]
    name = f"{family}_{phase}.yaml"
    config = command_line.resolved(command_of(name), "--config", CONFIGS / name)
    model, data = config["model"], config["data"]["init_args"]
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert config["trainer"]["devices"] == 1
    assert model["optimizer"]["class_path"] == "torch.optim.AdamW"
    given = model["optimizer"]["init_args"]
    assert {key: given[key] for key in ADAM} == ADAM
    plan = ("num_segments", "rollouts_per_position", "rollout_length")
    assert [model[key] for key in plan] == [8, 1, 5]
    assert (model["ntp_weight"], model["policy_weight"]) == weights
    assert {r["class_path"].rpartition(".")[2] for r in model["rewards"].values()} == rewards
    assert (data["batch_size"], model["minibatch_size"]) == (batch_size, minibatch_size)
    assert data.get("sequence_length", data.get("max_prompt_tokens")) == length
    assert model["gradient_clip"] == 1.0
    assert model["microbatch_size"] == 1


def test_a_spoilt_recipe_would_be_noticed(monkeypatch, tmp_path):
    text = (CONFIGS / "tiny_mid.yaml").read_text().replace("minibatch_size:", "minibatch_sise:")
    (tmp_path / "spoilt.yaml").write_text(text)
    assert recipes(tmp_path) == [tmp_path / "spoilt.yaml"]
    outcome, made = build(tmp_path / "spoilt.yaml", monkeypatch)
    assert outcome.code == 2
    assert not made
    assert "did you mean minibatch_size?" in outcome.stderr


def run_small(name, folder, *options):
    path = write_small(CONFIGS / name, folder)
    outcome = command_line.run(command_of(name), "--config", path, *options)
    assert outcome.code == 0, outcome.stderr
    return outcome


@pytest.mark.parametrize("name", TRAINED)
def test_training_runs(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    outcome = run_small(name, tmp_path)
    (run,) = (tmp_path / "runs").glob("*/version_0")
    assert (run / "config.yaml").exists()
    assert list(run.glob("checkpoints/last.ckpt"))
    assert list(run.glob("events.out.tfevents.*"))
    assert (run / "rollouts.jsonl").exists() == draws(name)
    if draws(name):
        rollouts = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
        assert rollouts
    assert str(run.relative_to(tmp_path)) in outcome.stdout.replace("\n", "")


@pytest.mark.parametrize("name", TESTED)
def test_test_time_training_runs(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = []
    if not loaded(name):
        run_small("tiny_post.yaml", tmp_path)
        (checkpoint,) = tmp_path.rglob("last.ckpt")
        options = ["--ckpt_path", checkpoint]
    run_small(name, tmp_path, *options)
    (run,) = (tmp_path / "runs" / "test").glob("*/version_0")
    assert run.parent.name == name.removesuffix(".yaml")
    answers = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 8
    card = json.loads((run / "card.json").read_text())
    assert card["test_time_training"]["policy_weight"] == 0.4
    assert json.loads((run / "scores.json").read_text())["rows"] == 8
