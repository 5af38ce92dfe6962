"""Every backbone out and in again; stored types; several models in one repository of the hub."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from hybrids import HEADS
from safetensors.torch import load_file, save_file

from refine_pl.backbones import (
    DeltaNet,
    GatedDeltaNet,
    LaCT,
    OlmoHybrid,
    Qwen35,
    Qwen35Multimodal,
    load_pretrained,
    save_pretrained,
)
from refine_pl.backbones.stack import MODELS
from refine_pl.errors import CheckpointError, ConfigError

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = {"vocab_size": 31, "hidden_size": 32, "num_hidden_layers": 2}
HYBRID = HEADS | {
    "intermediate_size": 24,
    "layer_types": ["linear_attention", "full_attention"],
}
FAMILIES = {
    "delta_net": (DeltaNet, {"num_heads": 2}),
    "gated_deltanet": (GatedDeltaNet, {"num_heads": 2, "num_v_heads": 4, "head_dim": 8}),
    "lact_swiglu": (LaCT, {"num_attn_heads": 4, "num_lact_heads": 2, "lact_chunk_size": 8}),
    "qwen3_5_text": (Qwen35, HYBRID | {"head_dim": 16}),
    "qwen3_5": (Qwen35Multimodal, HYBRID | {"head_dim": 16}),
    "olmo_hybrid": (OlmoHybrid, HYBRID | {"pad_token_id": None}),
}


def make(kind, **options):
    torch.manual_seed(0)
    cls, fields = FAMILIES[kind]
    return cls(**SIZES, **fields, **options)


def logits(policy):
    tokens = (torch.arange(40) * 7 % 31)[None]
    with torch.no_grad():
        return policy.head(policy(tokens).hidden.flatten(0, 1), logits=True).logits


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def copy_golden(name, folder):
    folder.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / name / file, folder / file)
    return folder


def test_every_kind_of_model_is_here():
    ours = {kind for kind, cls in MODELS.items() if cls.__module__.startswith("refine_pl.")}
    assert set(FAMILIES) == ours


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", FAMILIES)
def test_bit_equal(kind, tied, tmp_path):
    policy = make(kind, tie_word_embeddings=tied)
    assert save_pretrained(policy, tmp_path) == [
        "checksums.json",
        "config.json",
        "model.safetensors",
    ]
    assert config_of(tmp_path)["model_type"] == kind
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) != tied
    again = load_pretrained(str(tmp_path))
    assert again.config() == policy.config()
    assert (again.lm_head.weight is again.embeddings.weight) == tied
    ours, theirs = policy.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(logits(policy), logits(again))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", FAMILIES)
def test_stored_in_sixteen_bits(kind, dtype, tmp_path):
    policy = make(kind).to(dtype)
    save_pretrained(policy, tmp_path)
    assert config_of(tmp_path)["torch_dtype"] == str(dtype).removeprefix("torch.")
    again = load_pretrained(str(tmp_path)).state_dict()
    for name, tensor in policy.state_dict().items():
        assert again[name].dtype == torch.float32
        assert torch.equal(again[name], tensor.float())


def test_a_field_of_our_own_is_written_only_when_it_says_something(tmp_path):
    published = make("lact_swiglu", use_muon=True)
    save_pretrained(published, tmp_path / "a")
    assert "newton_schulz_dtype" not in config_of(tmp_path / "a")
    policy = make("lact_swiglu", use_muon=True, newton_schulz_dtype="float32")
    save_pretrained(policy, tmp_path / "b")
    assert config_of(tmp_path / "b")["newton_schulz_dtype"] == "float32"
    again = load_pretrained(str(tmp_path / "b"))
    assert again.config() == policy.config()
    assert torch.equal(logits(again), logits(policy))
    assert not torch.equal(logits(again), logits(load_pretrained(str(tmp_path / "a"))))


def test_a_backend_is_for_models_that_have_one(tmp_path):
    save_pretrained(make("delta_net"), tmp_path / "a")
    policy = load_pretrained(str(tmp_path / "a"), backend="torch")
    assert policy.model.layers[0].attn.backend == "torch"
    save_pretrained(make("lact_swiglu"), tmp_path / "b")
    with pytest.raises(ConfigError, match="LaCT has no backend 'fla'"):
        load_pretrained(str(tmp_path / "b"), backend="fla")


def test_a_head_that_is_not_tied_although_the_configuration_says_so(tmp_path):
    save_pretrained(make("delta_net"), tmp_path)
    config = config_of(tmp_path) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is not model\.embeddings"):
        load_pretrained(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embeddings.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors")
    policy = load_pretrained(str(tmp_path))
    assert policy.lm_head.weight is policy.model.embeddings.weight


def test_weights_that_published_code_never_used(tmp_path):
    """Older GatedDeltaNet checkpoints have one of them in each layer."""
    folder = copy_golden("gated_delta_net_base", tmp_path / "a")
    before = load_pretrained(str(folder))
    weights = load_file(folder / "model.safetensors")
    unused = {f"model.layers.{i}.attn.D": torch.ones(2) for i in range(2)}
    save_file(weights | unused, folder / "model.safetensors")
    with pytest.warns(UserWarning, match=r"left out model\.layers\.0\.attn\.D"):
        after = load_pretrained(str(folder))
    assert all(torch.equal(t, after.state_dict()[name]) for name, t in before.state_dict().items())

    folder = copy_golden("delta_net_base", tmp_path / "b")
    weights = load_file(folder / "model.safetensors")
    save_file(weights | unused, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"2 unexpected: model\.layers\.0\.attn\.D"):
        load_pretrained(str(folder))


@pytest.mark.parametrize("place", [0, 4, 40], ids=["length", "brace", "header"])
def test_corrupt_safetensors(place, tmp_path):
    folder = copy_golden("lact_fp32", tmp_path / "a")
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[place : place + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        load_pretrained(str(folder))


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', "["])
def test_a_broken_index(text, tmp_path):
    folder = copy_golden("lact_fp32", tmp_path / "a")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        load_pretrained(str(folder))


@pytest.mark.parametrize("index", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "shard", ["../b/model.safetensors", "inner/model.safetensors", "..", "", "a\\b", 3, None, "{}"]
)
def test_an_index_names_files_of_its_own_folder(index, shard, tmp_path):
    folder = copy_golden("lact_fp32", tmp_path / "a")
    other = copy_golden("lact_fp32", tmp_path / "b")
    (folder / "inner").symlink_to(other)
    (folder / "model.safetensors").unlink()
    shard = shard.format(other / "model.safetensors") if isinstance(shard, str) else shard
    weights = dict.fromkeys(load_pretrained(str(other)).state_dict(), shard)
    (folder / f"{index}.index.json").write_text(json.dumps({"weight_map": weights}))
    with pytest.raises(
        CheckpointError, match=r"is not a file of the folder|says (3|None) for"
    ) as caught:
        load_pretrained(str(folder))
    if isinstance(shard, str):
        assert "is not a file of the folder" in str(caught.value)


def test_a_shard_may_be_a_link_as_in_the_hubs_cache(tmp_path):
    folder = copy_golden("lact_fp32", tmp_path / "a")
    blob = (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "one.safetensors").symlink_to(blob)
    names = dict.fromkeys(load_file(blob), "one.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert load_pretrained(str(folder))


def test_what_a_class_refuses_names_the_file(tmp_path):
    folder = copy_golden("lact_fp32", tmp_path / "a")
    config = config_of(folder) | {"num_lact_heads": 3}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"num_lact_heads 3\n.*config\.json"):
        load_pretrained(str(folder))


class Hub:
    """The hub, as a folder: what is asked for is copied, as the real client would."""

    def __init__(self, source, cache):
        self.source, self.cache, self.fetched = source, cache, []

    def snapshot_download(self, name, revision=None, allow_patterns=None, ignore_patterns=None):
        files = [p.relative_to(self.source / name) for p in (self.source / name).rglob("*.*")]
        wanted = filter_repo_objects(
            map(str, files), allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        for file in wanted:
            target = self.cache / name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.source / name / file, target)
            self.fetched.append(file)
        return str(self.cache / name)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_a_model_on_the_hub_is_fetched_without_what_lies_beside_it(hub):
    copy_golden("delta_net_base", hub.source / "owner" / "model")
    copy_golden("lact_fp32", hub.source / "owner" / "model" / "other")
    assert isinstance(load_pretrained("owner/model"), DeltaNet)
    assert hub.fetched.count("model.safetensors") == 1
    assert "other/model.safetensors" not in hub.fetched


def test_one_of_several_models_in_a_repository(hub):
    copy_golden("lact_fp32", hub.source / "owner" / "models" / "a")
    copy_golden("lact_momentum", hub.source / "owner" / "models" / "b")
    policy = load_pretrained("owner/models/b")
    assert policy.config()["lact_chunk_size"] == 16
    assert "b/model.safetensors" in hub.fetched
    assert "a/model.safetensors" not in hub.fetched
    for name in ("owner/models", "owner/models/c"):
        with pytest.raises(CheckpointError, match="owner/models/a, owner/models/b"):
            load_pretrained(name)


def test_bin_files_are_fetched_if_there_is_nothing_else(hub):
    folder = copy_golden("delta_net_base", hub.source / "owner" / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    load_pretrained("owner/model")
    assert "pytorch_model.bin" not in hub.fetched
    (folder / "model.safetensors").unlink()
    shutil.rmtree(hub.cache)
    load_pretrained("owner/model")
    assert "pytorch_model.bin" in hub.fetched


@pytest.mark.parametrize("name", ["./gone", "/gone/away", "gone", "owner/model/../x"])
def test_what_is_neither_a_folder_nor_a_name(name, hub):
    with pytest.raises(CheckpointError, match="is not a folder"):
        load_pretrained(name)
    assert not hub.fetched
