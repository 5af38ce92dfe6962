"""``refine-pl doctor --verify``: one flipped bit is found, in exports, caches and checkpoints."""

import json
import random
import shutil

import pytest
import torch
from command_line import run

from refine_pl.backbones import DeltaNet, save_pretrained
from refine_pl.checksums import read_checksums, write_checksums
from refine_pl.commands.verifying import verify
from refine_pl.data import Bytes, Files, NeedleInAHaystack
from refine_pl.data.token_cache import tokenized


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mine"
    torch.manual_seed(0)
    policy = DeltaNet(vocab_size=31, hidden_size=16, num_hidden_layers=1, num_heads=2)
    files = save_pretrained(policy, folder)
    (folder / "tokenizer.json").write_text("{}")
    write_checksums(folder, [*files, "tokenizer.json"])
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "mine")


def states(found):
    return {file.file: file.state for file in found.files}


def flip(path, draw):
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def test_an_export_as_it_was_written(folder):
    outcome = run("doctor", "--verify", folder)
    assert outcome.code == 0
    title, *lines, last = outcome.stdout.splitlines()
    assert title == f"{folder}: an exported folder"
    names = ["checksums.json", "config.json", "model.safetensors", "tokenizer.json"]
    assert [line.split() for line in lines] == [["ok", name] for name in names]
    assert last == "sound: 4 ok"


def test_what_is_said_of_each_file(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "README.md").write_text("mine")
    assert not verify(str(folder)).is_sound
    flip(folder / "model.safetensors", random.Random(0))
    outcome = run("doctor", "--json", "--verify", folder)
    assert outcome.code == 1
    found = json.loads(outcome.stdout)
    assert found["is_sound"] is False
    assert {file["file"]: file["state"] for file in found["files"]} == {
        "checksums.json": "ok",
        "config.json": "ok",
        "model.safetensors": "damaged",
        "tokenizer.json": "missing",
        "README.md": "not listed",
    }
    text = run("doctor", "--verify", folder).stdout
    assert "damaged     model.safetensors  sha256 " in text
    assert text.endswith("not sound: 1 damaged, 1 missing, 1 not listed, 2 ok\n")


def test_a_file_that_was_added_is_no_damage(folder):
    (folder / "README.md").write_text("mine")
    assert states(verify(str(folder)))["README.md"] == "not listed"
    assert run("doctor", "--verify", folder).code == 0


def test_one_bit_of_an_export(folder):
    """Of every file, that of the digests included."""
    draw = random.Random(0)
    found = 0
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for _ in range(40):
            flip(path, draw)
            verification = verify(str(folder))
            assert states(verification)[path.name] == "damaged"
            assert not verification.is_sound
            path.write_bytes(whole)
            found += 1
    assert found == 160
    assert verify(str(folder)).is_sound


def test_digests_that_were_edited_by_hand(folder):
    path = folder / "checksums.json"
    content = json.loads(path.read_text())
    del content["sha256"]["model.safetensors"]
    for edited in (content, {"sha256": {}}, [], {"check": "x"}, 3):
        path.write_text(json.dumps(edited))
        assert states(verify(str(folder))) == {"checksums.json": "damaged"}
    write_checksums(folder, [])
    assert read_checksums(folder) == {}


@pytest.fixture
def cache(tmp_path):
    root = tmp_path / "cache"
    (tmp_path / "a.txt").write_text("hello world\n")
    tokenized(Files(str(tmp_path / "a.txt")), Bytes(), root)
    source = NeedleInAHaystack("single", [300], num_rows=2)
    source.cache_dir = root
    source.rows(Bytes())
    return root


def test_one_bit_of_a_cache(cache):
    whole = verify(str(cache))
    assert whole.is_sound
    assert whole.kind == "a cache"
    names = states(whole)
    assert sorted(name.rpartition(".")[2] for name in names) == ["arrow", "json", "jsonl"]
    draw = random.Random(1)
    for name in names:
        content = (cache / name).read_bytes()
        for _ in range(20):
            flip(cache / name, draw)
            found = verify(str(cache))
            assert not found.is_sound
            assert states(found)[name] == "damaged"
            (cache / name).write_bytes(content)
    assert verify(str(cache / "tokens")).is_sound


def test_what_else_is_in_a_cache(cache):
    (cache / "hashes").mkdir(exist_ok=True)
    (cache / "hashes" / "0123").write_text("nothing")
    (cache / "tokens" / ".building-x").write_text("")
    table = next((cache / "tokens").glob("*.arrow"))
    table.unlink()
    found = states(verify(str(cache)))
    assert found["hashes/0123"] == "damaged"
    assert found["tokens/.building-x"] == "not listed"
    assert found[f"tokens/{table.name}"] == "missing"


def test_one_bit_of_a_checkpoint(tmp_path):
    path = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": {"a": torch.randn(5000)}}, path)
    assert states(verify(str(tmp_path))) == {"version_0/checkpoints/last.ckpt": "ok"}
    whole = path.read_bytes()
    data = whole.index(torch.load(path)["state_dict"]["a"].numpy().tobytes())
    draw = random.Random(2)
    for _ in range(20):
        content = bytearray(whole)
        content[data + draw.randrange(20_000)] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        assert states(verify(str(tmp_path))) == {"version_0/checkpoints/last.ckpt": "damaged"}
    for size in (0, 100, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:size])
        assert not verify(str(tmp_path)).is_sound


@pytest.mark.parametrize("given", ["nowhere", "empty", "file"])
def test_what_cannot_be_verified(tmp_path, given):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    outcome = run("doctor", "--verify", tmp_path / given)
    assert outcome.code == 2
    assert "--verify" in outcome.stderr
    assert "Traceback" not in outcome.stderr
