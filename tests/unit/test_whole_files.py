"""Files and folders are whole whenever they can be seen; what dead processes left is removed."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import backbone

from refine_pl import whole_files
from refine_pl.backbones.pretrained import load_pretrained, save_pretrained
from refine_pl.data.cache_files import cached_file
from refine_pl.errors import ConfigError
from refine_pl.training.checkpoint_files import WholeCheckpointIO
from refine_pl.training.record_files import write_json
from refine_pl.whole_files import (
    WriteError,
    clean,
    filled_folder,
    remove,
    replace,
    replace_file,
    scratch_path,
    whole_file,
)

# Everything that this project writes goes through one of these.
WRITERS = {
    "text": lambda path, size: replace_file(path, "x" * size),
    "bytes": lambda path, size: replace_file(path, b"x" * size),
    "record": lambda path, size: write_json(path, {"x": "y" * size}),
    "cache": lambda path, size: _write_cached(path, size),
    "checkpoint": lambda path, size: WholeCheckpointIO().save_checkpoint(
        {"x": torch.zeros(size, dtype=torch.uint8)}, path
    ),
}


def _write_cached(path, size):
    with cached_file(path) as scratch:
        scratch.write_bytes(b"x" * size)


@pytest.fixture
def small_files():
    """Files of this process may have 64 KiB: what a full disk says, a little differently."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", WRITERS)
def test_what_does_not_fit_leaves_the_old_file(tmp_path, small_files, kind):
    path = tmp_path / "file"
    WRITERS[kind](path, 100)
    before = path.read_bytes()
    with pytest.raises((WriteError, ConfigError), match="cannot be written: File too large"):
        WRITERS[kind](path, 2**18)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_that_fails_when_it_is_flushed(tmp_path, monkeypatch, kind, code):
    def fsync(handle):
        raise OSError(code, os.strerror(code))

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(whole_files.os, "fsync", fsync)
    with pytest.raises((WriteError, ConfigError), match=os.strerror(code)):
        WRITERS[kind](path, 100)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (ValueError("a row"), FileNotFoundError(2, "No such file", "/elsewhere/x")):
        with pytest.raises(type(error)) as raised, whole_file(tmp_path / "file"):
            raise error
        assert raised.value is error
    assert os.listdir(tmp_path) == []


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "folder").write_text("")
    with pytest.raises(WriteError, match="cannot be written"):
        replace_file(tmp_path / "folder" / "file", "x")


def test_the_temporary_folder_is_not_used(tmp_path, monkeypatch):
    """It may lie on another file system, where a move is a copy that can be cut off."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "there is none"))
    for number, write in enumerate(WRITERS.values()):
        write(tmp_path / str(number), 1000)
    assert len(os.listdir(tmp_path)) == len(WRITERS)


def test_scratch_files_of_dead_processes_are_removed_and_no_others(tmp_path):
    """Random folders: of living and dead processes, of other machines, and what is not ours."""
    draw = random.Random(0)
    machine, pid, started = whole_files._me(os.getpid()).split("-")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    child_id = f"{machine}-{child.pid}-{whole_files._started(child.pid)}"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    living = [f"{machine}-{pid}-{started}", child_id, "00000000-1-5"]
    dead = [f"{machine}-{gone.pid}-77", f"{machine}-{child.pid}-1"]  # its number was used again
    try:
        checked = 0
        for round_ in range(20):
            folder = tmp_path / str(round_)
            folder.mkdir()
            stays, goes = {"last.ckpt", ".hidden", "x.scratch", ".a.scratch"}, set()
            for number in range(draw.randrange(1, 6)):
                name = draw.choice(["last.ckpt", "step=1.ckpt", "a.b.json", ".hidden", "x-1"])
                who, kept = draw.choice(
                    [(who, True) for who in living] + [(d, False) for d in dead]
                )
                (stays if kept else goes).add(f".{name}.{who}-{number}.scratch")
            for name in stays | goes:
                if draw.random() < 0.3 and name.endswith(".scratch"):
                    (folder / name).mkdir()
                    (folder / name / "shard").write_text("")
                else:
                    (folder / name).write_text("")
            assert set(clean(folder)) == goes
            assert set(os.listdir(folder)) == stays
            checked += len(goes)
        assert checked > 20
    finally:
        child.communicate(b"\n")
    elsewhere = tmp_path / ".old.00000000-1-5-0.scratch"
    elsewhere.write_text("")
    assert clean(tmp_path) == []
    week_ago = time.time() - 8 * 24 * 3600
    os.utime(elsewhere, (week_ago, week_ago))
    assert clean(tmp_path) == [elsewhere.name]


KILLED = """
import os, signal, sys
from pathlib import Path
from refine_pl import whole_files
folder, moment = Path(sys.argv[1]), sys.argv[2]
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "rename":
    rename, calls = os.replace, []
    def replace(*names):
        calls.append(names)
        die() if len(calls) == 2 else rename(*names)
    whole_files.os.replace = replace
elif moment == "flush":
    whole_files.flush = die
elif moment == "removal":
    whole_files.shutil.rmtree = die
scratch = whole_files.scratch_path(folder / "last.ckpt")
scratch.mkdir()
(scratch / "shard").write_text("new")
whole_files.replace(scratch, folder / "last.ckpt")
"""


@pytest.mark.parametrize(
    ("moment", "found"), [("flush", "old"), ("rename", "old"), ("removal", "new")]
)
def test_a_folder_that_is_replaced_is_whole_after_the_next_start(tmp_path, moment, found):
    """Whenever the process is killed."""
    folder = tmp_path / "checkpoints"
    (folder / "last.ckpt").mkdir(parents=True)
    (folder / "last.ckpt" / "shard").write_text("old")
    (folder / "last.ckpt" / "another").write_text("old")
    script = subprocess.run([sys.executable, "-c", KILLED, folder, moment], check=False)
    assert script.returncode == -signal.SIGKILL
    clean(folder)
    assert os.listdir(folder) == ["last.ckpt"]
    shards = {p.name: p.read_text() for p in (folder / "last.ckpt").iterdir()}
    assert shards == ({"shard": "old", "another": "old"} if found == "old" else {"shard": "new"})


def test_files_and_folders_replace_each_other(tmp_path):
    path = tmp_path / "last.ckpt"
    for kind in ("file", "folder", "folder", "file", "file"):
        scratch = scratch_path(path)
        if kind == "file":
            scratch.write_text(kind)
        else:
            scratch.mkdir()
            (scratch / "shard").write_text(kind)
        replace(scratch, path)
        assert (path if kind == "file" else path / "shard").read_text() == kind
        assert os.listdir(tmp_path) == ["last.ckpt"]
    remove(path)
    (path / "inner").mkdir(parents=True)
    remove(path)
    assert os.listdir(tmp_path) == []


def test_a_filled_folder_keeps_what_is_there_and_gets_all_or_nothing(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text("mine")

    def fill(broken):
        with filled_folder(folder, last="config.json") as scratch:
            (scratch / "config.json").write_text("{}")
            (scratch / "weights").write_text("w")
            assert broken is False, "stopped"

    with pytest.raises(AssertionError, match="stopped"):
        fill(broken=True)
    assert os.listdir(folder) == ["README.md"]
    fill(broken=False)
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "weights"]


def test_an_export_that_does_not_fit_leaves_nothing_that_looks_like_a_model(tmp_path, small_files):
    with pytest.raises(WriteError, match="File too large"):
        save_pretrained(backbone(hidden_size=64), tmp_path / "model")
    assert not (tmp_path / "model" / "config.json").exists()
    assert os.listdir(tmp_path / "model") == []
    written = save_pretrained(
        backbone(), tmp_path / "model", lambda to: replace_file(Path(to) / "vocab", "v")
    )
    assert written == ["checksums.json", "config.json", "model.safetensors", "vocab"]
    assert load_pretrained(str(tmp_path / "model")).vocab_size == 257
