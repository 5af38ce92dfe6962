"""A sharded checkpoint that would run something when torch reads it is refused before."""

import io
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import ModelParallelStrategy
from runs import trainer
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata

from refine_pl.errors import CheckpointError
from refine_pl.training.shard_files import check_shards
from refine_pl.training.trainer_checks import check_sharding

MARK = "ran"


class Calls:
    """Pickled, it calls a function when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def changed_class():
    """``Metadata.version`` set on the class itself: GLOBAL, a state of slots, BUILD."""
    return (
        b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n"
        b"N}X\x07\x00\x00\x00versionX\x04\x00\x00\x00evils\x86b."
    )


GADGETS = {
    "os.system": lambda: pickle.dumps(Calls(os.system, f"touch {MARK}")),
    "subprocess": lambda: pickle.dumps(Calls(subprocess.call, ["touch", MARK])),
    "eval": lambda: pickle.dumps(Calls(eval, f"open('{MARK}', 'w')")),
    "exec": lambda: pickle.dumps(Calls(exec, f"open('{MARK}', 'w')")),
    "rmtree": lambda: pickle.dumps(Calls(shutil.rmtree, "docs")),
    "open": lambda: pickle.dumps(Calls(open, MARK, "w")),
    "import": lambda: pickle.dumps(Calls(__import__, "shard_spy")),
    "an old protocol": lambda: b"cposix\nsystem\n(S'touch " + MARK.encode() + b"'\ntR.",
    "a name with dots": lambda: pickle.dumps(Calls(Path.touch, Path(MARK))),
    "inside the metadata": lambda: pickle.dumps(
        Metadata({}, planner_data=Calls(os.system, f"touch {MARK}"), storage_data={})
    ),
    "a class that is changed": changed_class,
}


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """A sharded checkpoint as torch writes it, with an item that is not a tensor."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "shard_spy.py").write_text(f"open('{MARK}', 'w')\n")
    state = {
        "state_dict": {"a": torch.ones(3), "b": torch.zeros(2, 2, dtype=torch.bfloat16)},
        "optimizer_0": {"lr": 0.5, "betas": (0.9, 0.99), "step": torch.tensor(3.0)},
    }
    dcp.save(state, checkpoint_id=tmp_path / "s", no_dist=True)
    torch.save({"pytorch-lightning_version": "2.6.6"}, tmp_path / "s" / "meta.pt")
    yield tmp_path / "s"
    assert not Path(MARK).exists()
    assert Path("docs").is_dir()
    sys.modules.pop("shard_spy", None)


def test_what_torch_writes_is_read(shards):
    check_shards(shards)
    state = {"optimizer_0": {"lr": 0.0, "betas": (0.0, 0.0)}}
    dcp.load(state, checkpoint_id=shards, no_dist=True)
    assert state["optimizer_0"] == {"lr": 0.5, "betas": (0.9, 0.99)}


@pytest.mark.parametrize("gadget", GADGETS)
@pytest.mark.parametrize("file", [".metadata", "__0.metadata"])
def test_what_metadata_would_run(shards, gadget, file):
    (shards / file).write_bytes(GADGETS[gadget]())
    with pytest.raises(CheckpointError, match="no code of a checkpoint is run") as caught:
        check_shards(shards)
    assert str(shards / file) in str(caught.value)
    assert Metadata.version is None


def test_the_gadgets_do_run_without_the_check(shards, tmp_path):
    """So the tests above prove something."""
    (shards / ".metadata").write_bytes(GADGETS["os.system"]())
    with pytest.raises(AttributeError):
        FileSystemReader(shards).read_metadata()
    assert Path(MARK).exists()
    Path(MARK).unlink()


def item(shards, name):
    found = FileSystemReader(shards).read_metadata()
    index = next(i for i in found.storage_data if i.fqn == name)
    return found, index, found.storage_data[index]


def write(shards, found):
    (shards / ".metadata").write_bytes(pickle.dumps(found))


def evil_file():
    buffer = io.BytesIO()
    torch.save(Calls(os.system, f"touch {MARK}"), buffer)
    return buffer.getvalue()


def test_an_item_that_is_not_a_tensor_holds_plain_values(shards):
    found, index, place = item(shards, "optimizer_0.lr")
    content = evil_file()
    (shards / "evil.distcp").write_bytes(content)
    place.relative_path, place.offset, place.length = "evil.distcp", 0, len(content)
    write(shards, found)
    with pytest.raises(CheckpointError, match=r"optimizer_0\.lr holds more than plain values"):
        check_shards(shards)
    # Nor does a tensor become one.
    found.state_dict_metadata["state_dict.a"] = found.state_dict_metadata.pop("optimizer_0.lr")
    found.storage_data[next(i for i in found.storage_data if i.fqn == "state_dict.a")] = place
    del found.storage_data[index]
    write(shards, found)
    with pytest.raises(CheckpointError, match=r"state_dict\.a holds more than plain values"):
        check_shards(shards)


@pytest.mark.parametrize("name", ["../evil.distcp", "/etc/hosts", "inner/x.distcp", "link.distcp"])
def test_items_lie_inside_the_checkpoint(shards, name):
    (shards / "link.distcp").symlink_to("/etc/hosts")
    found, _, place = item(shards, "state_dict.a")
    place.relative_path = name
    write(shards, found)
    with pytest.raises(CheckpointError, match="outside of the checkpoint"):
        check_shards(shards)


def test_damaged_metadata_are_said(shards):
    for content in (b"", b"\x80\x04", pickle.dumps({"a": 1}), os.urandom(64)):
        (shards / ".metadata").write_bytes(content)
        with pytest.raises(CheckpointError):
            check_shards(shards)
    (shards / ".metadata").unlink()
    with pytest.raises(CheckpointError, match=r"has no \.metadata"):
        check_shards(shards)


def test_a_sharded_run_looks_before_it_loads(shards):
    """The strategy's own loading is what Lightning calls to resume and to validate."""
    run = trainer(strategy=ModelParallelStrategy(), devices=2)
    check_sharding(run)
    (shards / ".metadata").write_bytes(GADGETS["os.system"]())
    with pytest.raises(CheckpointError, match=r"it names posix\.system"):
        run.strategy.load_checkpoint(shards)
