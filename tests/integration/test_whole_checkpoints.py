"""What a run has saved is never lost: to kill -9, to a full disk, to runs beside it."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import run, write_config, write_documents

from refine_pl import whole_files

KILL_NINE = Path(__file__).parents[1] / "stress" / "kill_nine.py"


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "docs")
    keeper = {"every_n_train_steps": 1, "save_top_k": 0, "save_last": True}
    edits = {"trainer.max_epochs": 1, "trainer.callbacks.0.init_args": keeper}
    write_config(tmp_path / "c.yaml", edits)
    return tmp_path


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(tmp_path):
    """The temporary folder lies elsewhere, on another file system where there is one."""
    elsewhere = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    words = ["--kills", "2", "--updates", "8", "--width", "16"]
    done = subprocess.run(
        [sys.executable, KILL_NINE, *words, "--folder", tmp_path, "--tmp", elsewhere],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith("2 of 2 kills survived")


def test_a_full_disk_keeps_the_checkpoint_before_and_is_a_clear_error(workplace, monkeypatch):
    """The second save finds no room."""
    saves = []
    replace = whole_files.replace

    def full(scratch, path):
        if path.suffix == ".ckpt":
            saves.append(path)
            if len(saves) == 2:
                raise OSError(28, "No space left on device")
        replace(scratch, path)

    monkeypatch.setattr(whole_files, "replace", full)
    outcome = run("fit", "--config", "c.yaml")
    assert outcome.code == 2
    last = Path("runs/c/version_0/checkpoints/last.ckpt")
    assert f"{last} cannot be written: No space left on device" in " ".join(outcome.stderr.split())
    assert "Traceback" not in outcome.stderr
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    assert torch.load(last, weights_only=True)["global_step"] == 1


def test_files_that_the_system_refuses_to_let_grow(workplace):
    """By the system itself, where torch writes the weights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, before[1]))
    try:
        outcome = run("fit", "--config", "c.yaml")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert outcome.code == 2
    assert "last.ckpt cannot be written: File too large" in " ".join(outcome.stderr.split())
    assert list(Path("runs").rglob("checkpoints/*")) == []


def test_a_resume_cleans_the_folder_that_it_starts_from(workplace):
    assert run("fit", "--config", "c.yaml").code == 0
    folder = Path("runs/c/version_0/checkpoints")
    machine = whole_files._machine()
    dead, living = f".last.ckpt.{machine}-4194304-1-0", ".last.ckpt.00000000-1-1-0"
    (folder / f"{dead}.scratch").write_text("half")
    (folder / f"{living}.scratch").write_text("half")
    put_aside = folder / f"{dead}.old"
    (folder / "last.ckpt").rename(put_aside)  # as a sharded one is, for a moment
    longer = ["--trainer.max_epochs", "2"]
    outcome = run("fit", "--config", "c.yaml", "--ckpt_path", folder / "last.ckpt", *longer)
    assert outcome.code == 0, outcome.stderr
    assert {p.name for p in folder.iterdir()} == {"last.ckpt", f"{living}.scratch"}
