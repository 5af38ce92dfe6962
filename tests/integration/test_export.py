"""``refine-pl export``: what was trained loads again, bit-equal, from the published layout."""

import json

import command_line
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from refine_pl.backbones import load_pretrained

WORDS = ["<unk>", "<s>", "</s>", *(chr(97 + i) for i in range(26))]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with a tokenizer in the published layout."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, "<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(
            folder / "tokenizer"
        )
        command_line.write_documents(folder / "docs")
        edits = {
            "data.init_args.tokenizer": {
                "class_path": "refine_pl.data.HubTokenizer",
                "init_args": {"name": str(folder / "tokenizer")},
            },
            "model.backbone.init_args.vocab_size": 29,
        }
        config = command_line.write_config(folder / "c.yaml", edits)
        outcome = command_line.run("fit", "--config", config)
        assert outcome.code == 0, outcome.stderr
        (checkpoint,) = folder.glob("runs/**/last.ckpt")
    return folder, checkpoint


def test_exported_folder_loads_bit_equal(run, tmp_path):
    _, checkpoint = run
    outcome = command_line.run("export", "--ckpt_path", checkpoint, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.stderr
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "out" / name).exists()
        assert name in outcome.stdout
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "delta_net"
    policy = load_pretrained(str(tmp_path / "out"))
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    compared = 0
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, trained[f"policy.{name}"])
        compared += 1
    assert compared == sum(name.startswith("policy.") for name in trained)


def test_sharded_checkpoint(run, tmp_path):
    """The layout of sharded training: distributed checkpoint files beside ``meta.pt``."""
    import torch.distributed.checkpoint as dcp

    _, checkpoint = run
    content = torch.load(checkpoint, weights_only=True)
    dcp.save({"state_dict": content.pop("state_dict")}, checkpoint_id=tmp_path / "s", no_dist=True)
    torch.save(content, tmp_path / "s" / "meta.pt")
    arguments = ["--out", tmp_path / "a"]
    assert command_line.run("export", "--ckpt_path", checkpoint, *arguments).code == 0
    arguments = ["--out", tmp_path / "b", "--tokenizer", run[0] / "tokenizer"]
    outcome = command_line.run("export", "--ckpt_path", tmp_path / "s", *arguments)
    assert outcome.code == 0, outcome.stderr
    first, second = (load_pretrained(str(tmp_path / name)).state_dict() for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_cannot_be_exported(run, tmp_path):
    folder, checkpoint = run
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").write_text("{}")
    bare = tmp_path / "bare.ckpt"
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, bare)
    cases = [
        (["--ckpt_path", checkpoint, "--out", tmp_path / "taken"], "already holds a model"),
        (["--ckpt_path", tmp_path / "none.ckpt", "--out", tmp_path / "x"], "none.ckpt"),
        (["--ckpt_path", bare, "--out", tmp_path / "x"], "does not say what its model is"),
        (["--ckpt_path", checkpoint], "out"),
        (["--ckpt_path", checkpoint, "--outt", "x"], "outt"),
        (
            ["--ckpt_path", checkpoint, "--out", tmp_path / "x", "--tokenizer", folder / "docs"],
            "there is no tokenizer in the folder",
        ),
    ]
    for arguments, fragment in cases:
        outcome = command_line.run("export", *arguments)
        assert outcome.code == 2
        assert fragment in " ".join(outcome.stderr.split())
        assert "Traceback" not in outcome.stderr
    assert not (tmp_path / "x").exists()
