"""Published checkpoints in and out, and what is said about those that cannot be used."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from refine_pl.backbones import load_pretrained, save_pretrained
from refine_pl.errors import CheckpointError

GOLDEN = Path(__file__).parents[1] / "golden" / "delta_net_base"


@pytest.fixture
def folder(tmp_path):
    copy = tmp_path / "model"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / name, copy / name)
    return copy


def edit(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def logits(policy, tokens):
    with torch.no_grad():
        return policy.head(policy(tokens).hidden.flatten(0, 1), logits=True).logits


def test_golden_folder(folder):
    expected = load_file(GOLDEN / "expected.safetensors")
    got = logits(load_pretrained(str(folder)), expected["input_ids"])
    got = got.view_as(expected["logits"])
    assert (got - expected["logits"]).norm() < 1e-5 * expected["logits"].norm()


def test_loaded_model_can_be_trained(folder):
    policy = load_pretrained(str(folder), activation_checkpointing=True)
    policy(torch.ones(1, 5, dtype=torch.int64)).hidden.sum().backward()
    trained = [p for p in policy.parameters() if p.grad is not None]
    assert len(trained) == len(list(policy.parameters())) - 1  # all but the head
    assert not any(p.is_meta for p in policy.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_saved_folder_loads_bit_equal(tmp_path, tied):
    torch.manual_seed(0)
    from refine_pl.backbones import DeltaNet

    policy = DeltaNet(
        vocab_size=31, hidden_size=16, num_hidden_layers=2, num_heads=2, use_gate=True,
        tie_word_embeddings=tied,
    )  # fmt: skip
    save_pretrained(policy, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "delta_net"
    assert config["use_gate"] is True
    assert "activation_checkpointing" not in config
    again = load_pretrained(str(tmp_path / "out"))
    assert again.config() == policy.config()
    tokens = torch.arange(20)[None]
    assert torch.equal(logits(policy, tokens), logits(again, tokens))
    assert (again.lm_head.weight is again.model.embeddings.weight) == tied
    with pytest.raises(CheckpointError, match="already holds a model"):
        save_pretrained(policy, tmp_path / "out")


def test_shards(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    loaded = load_pretrained(str(folder)).state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in names)

    (folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard b\.safetensors is missing"):
        load_pretrained(str(folder))


def test_bin_is_read_as_weights_only(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    loaded = load_pretrained(str(folder)).state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)

    torch.save({"model.norm.weight": Path}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled code is never run"):
        load_pretrained(str(folder))


def spoil_nothing(folder):
    shutil.rmtree(folder)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def rename_a_key(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.extra.weight"] = weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "fragments"),
    [
        (spoil_nothing, ["is not a folder"]),
        (truncate, ["model.safetensors", "truncated or corrupt"]),
        (rename_a_key, ["1 missing: model.norm.weight", "1 unexpected: model.extra.weight"]),
        (lambda f: edit(f, model_type="llama"), ["'llama'", "delta_net"]),
        (lambda f: edit(f, model_type="deltanet"), ["did you mean delta_net"]),
        (lambda f: edit(f, model_type="qwen3_next"), ["mixture of experts", "qwen3_5_text"]),
        (lambda f: edit(f, model_type="qwen3_5_moe"), ["'qwen3_5_moe' is a mixture of experts"]),
        (lambda f: edit(f, model_type="kimi_linear"), ["not supported yet", "olmo_hybrid"]),
        (lambda f: edit(f, model_type="olmo3_moe"), ["mixture of experts, which is not supported"]),
        (lambda f: edit(f, num_experts=8), ["'delta_net' is a mixture of experts"]),
        (lambda f: edit(f, text_config={"n_routed_experts": 4}), ["mixture of experts"]),
        (lambda f: edit(f, model_type="falcon_h1"), ["another recurrence than the delta rule"]),
        (lambda f: edit(f, model_type=["qwen3_next"]), ["is not a fast-weight model"]),
        (lambda f: edit(f, hidden_size=32), ["of another shape", "expected [97, 32]"]),
        (lambda f: edit(f, num_hidden_layers=3), ["missing: model.layers.2"]),
        (lambda f: edit(f, frobnicate=3), ["frobnicate=3", "may change"]),
        (lambda f: edit(f, use_gates=True), ["use_gates", "did you mean use_gate"]),
        (lambda f: edit(f, attn={"layers": [1]}), ["attn has no num_heads"]),
        (lambda f: (f / "config.json").write_text("{"), ["is not JSON"]),
        (lambda f: (f / "config.json").unlink(), ["no config.json"]),
        (lambda f: (f / "model.safetensors").unlink(), ["no weights"]),
    ],
)
def test_what_cannot_be_used_is_named(folder, spoil, fragments):
    spoil(folder)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its class is checked below
        load_pretrained(str(folder))
    assert type(caught.value).__name__ in ("CheckpointError", "ConfigError")
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_options_that_are_off_are_a_warning(folder):
    edit(folder, frobnicate=False, transformers_version="5")
    with pytest.warns(UserWarning, match="frobnicate"):
        load_pretrained(str(folder))


@pytest.mark.parametrize("name", ["nobody/no-such-model-of-ours", "nobody/no-such/model/of-ours"])
def test_a_name_that_cannot_be_fetched(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=f"^{name} is neither a folder here nor"):
        load_pretrained(name)
