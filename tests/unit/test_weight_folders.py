"""Folders of weights as people have them: read right, or refused with the file and the reason."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from refine_pl.backbones import load_pretrained
from refine_pl.errors import CheckpointError, UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "delta_net_base"
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4cac19622fc3ada9c0fdeadb33f88f367b54\n"
    "size 4683073\n"
)


@pytest.fixture
def folder(tmp_path):
    copy = tmp_path / "model"
    copy.mkdir()
    for name in ("config.json", FILE):
        shutil.copyfile(GOLDEN / name, copy / name)
    return copy


def shard(folder, parts=2, keep=False):
    """Cut the file into shards with an index; the shards."""
    weights = load_file(folder / FILE)
    if not keep:
        (folder / FILE).unlink()
    files = [folder / f"model-{i + 1:05}-of-{parts:05}.safetensors" for i in range(parts)]
    weight_map = {}
    for i, file in enumerate(files):
        names = sorted(weights)[i::parts]
        save_file({name: weights[name].clone() for name in names}, file)
        weight_map |= dict.fromkeys(names, file.name)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return files


def golden():
    return load_file(GOLDEN / FILE)


def assert_right(folder):
    loaded = load_pretrained(str(folder)).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in golden().items())


def refused(folder, *fragments):
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(str(folder))
    for fragment in fragments:
        assert fragment in str(caught.value)


def refusal(folder):
    try:
        load_pretrained(str(folder))
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: name.replace(".attn.", ".attn._orig_mod."),
        lambda name: name.replace("layers.1.", "layers.1._checkpoint_wrapped_module."),
        lambda name: name.replace("layers.0.", "layers.0._fsdp_wrapped_module.") + "",
    ],
)
@pytest.mark.parametrize("file", [FILE, "pytorch_model.bin"])
def test_names_that_wrappers_leave(folder, rename, file):
    renamed = {rename(name): tensor for name, tensor in golden().items()}
    assert renamed.keys() != golden().keys()
    (folder / FILE).unlink()
    save = save_file if file == FILE else torch.save
    save(renamed, folder / file)
    assert_right(folder)


def test_names_with_and_without_a_wrapper(folder):
    weights = golden()
    save_file(
        weights | {"_orig_mod.model.norm.weight": weights["model.norm.weight"] + 1}, folder / FILE
    )
    refused(folder, FILE, "model.norm.weight is stored twice, with different values")


def test_a_file_beside_a_stale_index(folder):
    files = shard(folder, keep=True)
    changed = {name: tensor + 1 for name, tensor in load_file(files[0]).items()}
    save_file(changed, files[0])
    with pytest.warns(UserWarning, match=rf"{FILE} and shards: the file was read, and {INDEX}"):
        assert_right(folder)
    for file in files:
        file.unlink()
    with pytest.warns(UserWarning, match="remove the one that is out of date"):
        assert_right(folder)


def test_an_index_of_the_file_itself(folder, recwarn):
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(golden(), FILE)}))
    assert_right(folder)
    assert not recwarn.list


def test_shards_without_an_index(folder):
    shard(folder)
    (folder / INDEX).unlink()
    refused(folder, "no weights", "model-00001-of-00002.safetensors", f"shards need {INDEX}")


def test_shards_that_are_missing_or_too_many(folder):
    files = shard(folder, parts=4)
    shutil.copyfile(files[0], folder / "model-00001-of-00009.safetensors")  # of another sharding
    assert_right(folder)
    files[1].unlink()
    refused(folder, f"the shard {files[1].name} is missing", INDEX)
    files[3].unlink()
    refused(folder, f"the shards {files[1].name}, {files[3].name} are missing")


@pytest.mark.parametrize("same", [True, False])
def test_a_tensor_in_two_shards(folder, same):
    files = shard(folder)
    name, tensor = next(iter(load_file(files[0]).items()))
    save_file(load_file(files[1]) | {name: tensor if same else tensor + 1}, files[1])
    if same:
        assert_right(folder)
    else:
        refused(folder, f"{name} is stored twice, with different values", files[1].name)


@pytest.mark.parametrize("value", [3, None, ["a"], {}])
def test_an_index_that_names_no_file(folder, value):
    shard(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": value}}))
    refused(folder, INDEX, "model.norm.weight")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_numbers_of_another_kind(folder, dtype):
    weights = golden()
    weights["model.norm.weight"] = weights["model.norm.weight"].to(dtype)
    save_file(weights, folder / FILE)
    refused(folder, FILE, f"model.norm.weight is {str(dtype)[6:]}", "floating-point")


@pytest.mark.parametrize("tensor", [torch.ones(16).to_sparse(), torch.empty(16, device="meta")])
def test_tensors_that_hold_no_weights(folder, tensor):
    (folder / FILE).unlink()
    torch.save(golden() | {"model.norm.weight": tensor}, folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin", "model.norm.weight is ")


@pytest.mark.parametrize("sharded", [False, True])
def test_a_byte_order_mark(folder, sharded):
    if sharded:
        shard(folder)
    for path in folder.glob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert_right(folder)


@pytest.mark.parametrize("name", ["config.json", FILE, INDEX, "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [(POINTER, "it is a pointer of git-lfs to a file that was not fetched"), ("", "it is empty")],
)
def test_what_stands_in_the_place_of_a_file(folder, name, content, reason):
    if name == INDEX:
        shard(folder)
    elif name != "config.json":
        (folder / FILE).unlink()
    (folder / name).write_text(content)
    refused(folder, name, reason)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"vocab_size": ' + "9" * 5000 + "}", "\ud800", "3"]
)
def test_a_configuration_that_cannot_be_parsed(folder, text):
    (folder / "config.json").write_bytes(text.encode(errors="surrogatepass"))
    refused(folder, "config.json is not")


def test_damage_at_random(folder):
    """Cut files, and bytes written over the header: never another exception, nor other shapes."""
    draw = random.Random(0)
    whole = (folder / FILE).read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    read = broken = 0
    for _ in range(60):
        content = bytearray(whole)
        if draw.random() < 0.5:
            content = content[: draw.randrange(len(content))]
        else:
            for _ in range(draw.randint(1, 8)):
                content[draw.randrange(header)] = draw.randrange(256)
        (folder / FILE).write_bytes(content)
        said = refusal(folder)
        if said is None:
            read += 1  # a byte of metadata that changes nothing, or one that was right already
        else:
            assert str(folder) in said
            broken += 1
    assert broken > 50
    assert read + broken == 60
