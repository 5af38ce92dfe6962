"""Processes started by torchrun: they fit without more options, and speak with one voice."""

import json
import subprocess
import sys
import time

import command_line
import pytest
from lost_processes import command
from processes import run_processes
from recipes import CONFIGS

from refine_pl import launch

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

EDITS = {
    "schedule.stages": {"refine": {"iterations": 4}},
    "trainer.max_epochs": command_line.GONE,
    "trainer.callbacks": [],
    "model.minibatch_size": 4,
    "data.init_args.batch_size": 4,
}
OVERLAYS = {"ddp": CONFIGS / "hardware" / "ddp.yaml", "fsdp": CONFIGS / "hardware" / "fsdp2.yaml"}
# Of a job that would otherwise wait half an hour for the lost process; the machine may be slow.
SOON_S = 120


@pytest.fixture
def folder(tmp_path):
    command_line.write_documents(tmp_path / "docs", number=8)
    command_line.write_config(tmp_path / "run.yaml", EDITS)
    return tmp_path


def test_torchrun(folder):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*start, "-m", "refine_pl", "fit", "--config", "run.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Starting with 2 processes" in done.stderr
    assert done.stdout.count("run folder") == 1
    assert [path.name for path in (folder / "runs" / "run").iterdir()] == ["version_0"]


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--model.minibatch_size=3", "mini-batches of 3"),
        ("--trainer.devices=3", "does not match the world size"),
        ("--model.backbone.init_args.vocab_size=100", "vocab_size"),
    ],
)
def test_what_all_processes_meet_is_said_once(folder, option, says):
    done = run_processes(command, 2, str(folder), "fit", "--config", "run.yaml", option)
    assert [process["code"] for process in done] == [2, 2]
    said = [process["stderr"] for process in done if "error:" in process["stderr"]]
    assert len(said) == 1
    assert says in said[0]


@pytest.mark.parametrize(("overlay", "processes", "rank"), [("ddp", 4, 2), ("fsdp", 2, 0)])
def test_a_killed_process_ends_the_job(folder, overlay, processes, rank):
    kill = [{"class_path": "lost_processes.KillAt", "init_args": {"rank": rank}}]
    options = (f"--trainer.callbacks={json.dumps(kill)}", "--trainer.accelerator=cpu")
    words = ("fit", "--config", "run.yaml", "--config", str(OVERLAYS[overlay]), *options)
    since = time.monotonic()
    done = run_processes(command, processes, str(folder), *words, killed=[rank])
    assert time.monotonic() - since < SOON_S
    left = [process for process in done if process is not None]
    assert [process["code"] for process in left] == [2] * (processes - 1)
    said = [process["stderr"] for process in left if "error:" in process["stderr"]]
    assert len(said) == 1
    assert "another process of this run has ended" in said[0]


def test_what_was_said_long_ago_does_not_silence(tmp_path, monkeypatch):
    monkeypatch.setattr(launch.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert launch.is_first_to_say()
    assert not launch.is_first_to_say()
    assert not launch.is_first_to_say(of_another=True)
    monkeypatch.setattr(launch, "_STALE_S", 0.0)
    assert launch.is_first_to_say()
    monkeypatch.setattr(launch.tempfile, "gettempdir", lambda: str(tmp_path / "absent"))
    assert launch.is_first_to_say()  # a mark cannot be left: better said twice
    assert launch.is_first_to_say()
