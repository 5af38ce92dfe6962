"""Runs that start from published weights: ``model.pretrained``, or a backbone that is loaded."""

import json
import shutil
from pathlib import Path

import command_line
import pytest
import torch
import yaml
from command_line import GONE
from safetensors.torch import load_file, save_file

from refine_pl.backbones import DeltaNet, load_pretrained
from refine_pl.errors import ConfigError
from refine_pl.training.module import RefineModule

GOLDEN = Path(__file__).parents[1] / "golden"
SHORT = ["--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"]
LOADED = {
    "class_path": "refine_pl.backbones.load_pretrained",
    "init_args": {"path_or_name": "model", "activation_checkpointing": True},
}


def copy_model(name, folder):
    """A golden model with a vocabulary of 257 tokens, for bytes."""
    folder.mkdir()
    config = json.loads((GOLDEN / name / "config.json").read_text()) | {"vocab_size": 257}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(GOLDEN / name / "model.safetensors")
    for key in ("model.embeddings.weight", "lm_head.weight"):
        weights[key] = torch.cat([weights[key]] * 3)[:257].clone()
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(params=["delta_net_base", "gated_delta_net_base", "lact_momentum"])
def workplace(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command_line.write_documents(tmp_path / "docs")
    copy_model(request.param, tmp_path / "model")
    edits = {"model.backbone": GONE, "model.pretrained": "model"}
    command_line.write_config(tmp_path / "pretrained.yaml", edits)
    command_line.write_config(tmp_path / "loaded.yaml", {"model.backbone": LOADED})
    config = yaml.safe_load((tmp_path / "pretrained.yaml").read_text())
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"data": config["data"]}))
    return tmp_path


def one_kind(test):
    """For tests that the kind of model makes no difference to."""
    return pytest.mark.parametrize("workplace", ["delta_net_base"], indirect=True)(test)


def run(*words):
    outcome = command_line.run(*words)
    assert outcome.code == 0, outcome.stderr
    return outcome


def train(workplace, config="pretrained.yaml"):
    run("fit", "--config", config, *SHORT)
    (checkpoint,) = workplace.rglob("last.ckpt")
    return shutil.copy(checkpoint, workplace / "run.ckpt")


@pytest.mark.parametrize("config", ["pretrained.yaml", "loaded.yaml"])
def test_the_folder_is_needed_once(workplace, config):
    """Resumed, validated and exported without the folder that the run started from."""
    checkpoint = train(workplace, config)
    before = load_pretrained("model")
    shutil.rmtree(workplace / "model")

    run("fit", "--config", "data.yaml", "--ckpt_path", checkpoint,
        "--trainer.max_epochs", "2", *SHORT)  # fmt: skip
    run("validate", "--config", "data.yaml", "--ckpt_path", checkpoint, *SHORT[2:])
    saved = sorted(workplace.rglob("config.yaml"), key=lambda path: path.stat().st_mtime)
    assert len(saved) == 3
    for path in saved[1:]:
        model = yaml.safe_load(path.read_text())["model"]
        assert model["pretrained"] is None
        assert model["backbone"]["class_path"].endswith(f".{type(before).__name__}")
        assert model["backbone"]["init_args"]["hidden_size"] == 64
        if config == "loaded.yaml":
            assert model["backbone"]["init_args"]["activation_checkpointing"] is True

    run("export", "--ckpt_path", checkpoint, "--out", "out")
    after = load_pretrained("out")
    assert after.config() == before.config()
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, tensor in after.state_dict().items():
        assert torch.equal(tensor, weights[f"policy.{name}"])
    moved = [k for k, t in after.state_dict().items() if not torch.equal(t, before.state_dict()[k])]
    assert moved


@one_kind
def test_resumed_with_the_configuration_that_names_the_folder(workplace):
    checkpoint = train(workplace)
    for config in ("pretrained.yaml", "loaded.yaml"):
        run("fit", "--config", config, "--ckpt_path", checkpoint,
            "--trainer.max_epochs", "2", *SHORT)  # fmt: skip
    run("validate", "--config", "data.yaml", "--ckpt_path", checkpoint,
        "--model.pretrained", "model", *SHORT[2:])  # fmt: skip
    (workplace / "model.yaml").write_text("pretrained: model\n")
    (workplace / "nested.yaml").write_text("model: model.yaml\n")
    run("validate", "--config", "data.yaml", "--config", "nested.yaml",
        "--ckpt_path", checkpoint, *SHORT[2:])  # fmt: skip


@one_kind
def test_a_setting_of_the_checkpoints_backbone_can_be_changed(workplace):
    checkpoint = train(workplace)
    shutil.rmtree(workplace / "model")
    words = ["--config", "data.yaml", "--ckpt_path", checkpoint]
    words += ["--model.backbone.activation_checkpointing", "true"]
    backbone = command_line.resolved("fit", *words)["model"]["backbone"]["init_args"]
    assert backbone["activation_checkpointing"] is True
    assert backbone["hidden_size"] == 64


@one_kind
def test_a_checkpoint_of_a_made_backbone(workplace):
    """Its weights do not fit another model, which the user has asked for."""
    command_line.write_config(workplace / "made.yaml")
    checkpoint = train(workplace, "made.yaml")
    words = ["--config", "data.yaml", "--ckpt_path", checkpoint]
    run("validate", *words, *SHORT[2:])
    outcome = command_line.run("validate", *words, "--model.pretrained", "model")
    assert outcome.code == 2
    assert "the checkpoint does not fit this DeltaNet" in outcome.stderr


@one_kind
def test_an_exported_folder_is_the_start_of_the_next_run(workplace):
    run("export", "--ckpt_path", train(workplace), "--out", "out")
    outcome = run("fit", "--config", "pretrained.yaml", "--model.pretrained", "out", *SHORT)
    assert "DeltaNet" in outcome.stdout


REFUSED = {
    "neither": (["--model.pretrained", "null"], ["model.backbone is missing", "model.pretrained"]),
    "both": (
        ["--model.backbone", "DeltaNet"],
        ["model.backbone and model.pretrained are both given", ".DeltaNet and model)"],
    ),
    "no folder": (["--model.pretrained", "./gone"], ["./gone is not a folder"]),
    "empty folder": (["--model.pretrained", "docs"], ["there is no config.json in docs"]),
    "no name": (["--model.pretrained", "nobody/nothing"], ["nobody/nothing is neither"]),
    "tokenizer": (
        ["--model.pretrained", "small"],
        ["the tokenizer has ids up to 256, the backbone only 97 tokens", "model.pretrained"],
    ),
}


@one_kind
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, workplace):
    shutil.copytree(GOLDEN / "delta_net_base", workplace / "small")
    options, shows = REFUSED[name]
    outcome = command_line.run("fit", "--config", "pretrained.yaml", *options)
    assert outcome.code == 2
    assert "Traceback" not in outcome.stderr
    for text in shows:
        assert text in " ".join(outcome.stderr.split())


@one_kind
def test_null_gives_the_way_to_the_other(workplace):
    words = ["--model.pretrained", "null", "--model.backbone", "DeltaNet"]
    run("fit", "--config", "pretrained.yaml", *words, "--model.backbone.hidden_size", "16",
        "--model.backbone.num_heads", "2", "--model.backbone.num_hidden_layers", "1",
        "--model.backbone.vocab_size", "257", *SHORT)  # fmt: skip


def test_from_python():
    folder = str(GOLDEN / "lact_fp32")
    assert type(RefineModule(pretrained=folder).policy).__name__ == "LaCT"
    policy = DeltaNet(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_heads=1)
    assert RefineModule(policy).policy is policy
    with pytest.raises(ConfigError, match=r"model\.backbone is missing, and so is model\.pretr"):
        RefineModule()
    with pytest.raises(ConfigError, match="both given"):
        RefineModule(policy, pretrained=folder)


@pytest.mark.parametrize(
    ("workplace", "length", "noted"),
    [("lact_momentum", 48, False), ("lact_momentum", 47, True), ("delta_net_base", 47, False)],
    indirect=["workplace"],
)
def test_texts_beyond_the_positions_are_noted(workplace, length, noted):
    path = workplace / "model" / "config.json"
    config = json.loads(path.read_text()) | {"max_position_embeddings": length}
    path.write_text(json.dumps(config))
    outcome = run("fit", "--config", "pretrained.yaml", *SHORT)
    text = "note: texts of up to 48 tokens, and the positions of this LaCT are said to reach 47"
    assert outcome.stdout.count(text) == noted
    assert ("note: texts" in outcome.stdout) == noted
