"""Overlays x seeds as real runs: the layout, the index, and going on after whatever happens."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import command_line
import pytest
import torch
import yaml
from forked_programs import Forks

GATE = """
import time
from pathlib import Path

from lightning.pytorch import Callback


class Gate(Callback):
    def on_train_batch_end(self, trainer, module, *_):
        hold = Path("hold")
        if module.iteration == 2 and hold.exists():
            Path("reached").touch()
            while hold.exists():
                time.sleep(0.02)
"""

# A program that stands for refine-pl where only the handling of processes is tested.
STUB = """
import os, sys, time
from pathlib import Path

words = dict(zip(sys.argv[2::2], sys.argv[3::2]))
print(*sys.argv[1:])
if sys.argv[1] == "test":
    out = Path(words["--out"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "scores.json").write_text('{"rows": 0, "results": []}')
    sys.exit(3 if Path("no_test").exists() else 0)
place = [words[f"--trainer.logger.init_args.{n}"] for n in ("save_dir", "name", "version")]
run = Path(*place)
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
if Path("meet").exists():  # until two are here
    print("threads", os.environ.get("OMP_NUM_THREADS"))
    Path(f"here_{os.getpid()}").touch()
    while len(list(Path().glob("here_*"))) < 2:
        time.sleep(0.02)
if Path("hold").exists():
    try:
        Path("reached").touch()
        Path(f"reached_{run.parent.name}").touch()
        time.sleep(60)
    except KeyboardInterrupt:
        if Path("hold").read_text() != run.parent.name:  # whose training had just ended
            raise
if Path("killed").exists():
    number = int(Path("killed").read_text())
    Path("killed").unlink()
    sys.exit(number) if number > 0 else os.kill(os.getpid(), -number)
if Path("no_fit").exists():
    print("error: no luck\\n  way out: another day")
    sys.exit(2)
import zipfile
zipfile.ZipFile(run / "checkpoints" / "last.ckpt", "w").close()
(run / "config.yaml").touch()
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a recipe, overlays and documents, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    return tmp_path


def prepare(folder):
    command_line.write_documents(folder / "docs", number=12)
    (folder / "gate.py").write_text(GATE)
    (folder / "stub.py").write_text(STUB)
    (folder / "length").mkdir()
    for length in (1, 2):
        write(folder / "length" / f"{length}.yaml", model={"rollout_length": length})
    write(folder / "segments" / "too_many.yaml", model={"num_segments": 40})
    every_step = {"save_top_k": 1, "save_last": True, "every_n_train_steps": 1}
    checkpoint = command_line.CONFIG["trainer"]["callbacks"][0] | {"init_args": every_step}
    callbacks = ["gate.Gate", "refine_pl.callbacks.RunSummary", "refine_pl.callbacks.RandomState"]
    edits = {
        "trainer.callbacks": [*({"class_path": name} for name in callbacks), checkpoint],
        "trainer.max_epochs": -1,
        "trainer.val_check_interval": 1,
        "data.init_args.num_validation_documents": 2,
    }
    command_line.write_config(folder / "tiny.yaml", edits)


def write(path, **sections):
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(sections))


def sweep(*argv, out="out", steps="3"):
    """The words of a sweep of the recipe."""
    own = ["sweep", "--config", "tiny.yaml", "--out", out, *argv]
    return [*own, "--", "--trainer.max_steps", steps]


def index(folder="out"):
    return json.loads(Path(folder, "sweep.json").read_text())


def statuses(folder="out"):
    return {e["run"]: e["status"] for e in index(folder)["entries"]}


def weights(run):
    state = torch.load(Path(run, "checkpoints", "last.ckpt"), weights_only=True)
    assert state["global_step"] == 3
    return state["state_dict"]


def last_validation(run):
    return json.loads(Path(run, "summary.json").read_text())["validations"][-1]


def wait_for(path, process=None):
    for _ in range(2400):
        if Path(path).exists():
            return
        assert process is None or process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def start(words):
    """A sweep in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "refine_pl", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_two_overlays_and_two_seeds_then_a_kill(place, monkeypatch):
    """One test, so that the killed run is compared with the same one left alone.

    The sweep that is killed and its runs start as a user's do; the other runs are forked from here.
    """
    monkeypatch.setattr("refine_pl.sweep.process.subprocess", Forks)
    outcome = command_line.run(*sweep("--overlays", "length", "--seeds", "0", "1"))
    assert outcome.code == 0, outcome.stdout + outcome.stderr
    runs = [f"length/{length}/seed_{seed}" for length in (1, 2) for seed in (0, 1)]
    assert statuses() == dict.fromkeys(runs, "done")
    assert "[4/4] length/2 seed 1 ... done" in outcome.stdout
    assert "refine-pl report out" in outcome.stdout
    for entry in index()["entries"]:
        config = yaml.safe_load(Path("out", entry["run"], "config.yaml").read_text())
        seeds = (config["seed_everything"], config["model"]["seed"])
        assert (*seeds, config["data"]["init_args"]["seed"]) == (entry["seed"],) * 3
        assert config["model"]["rollout_length"] == int(entry["overlay"])
        assert entry["seconds"] > 0
        assert entry["error"] is None
        assert Path("out", entry["run"], "run.log").read_text().startswith("$ ")
    assert index()["overlays"][0]["changes"] == {"model.rollout_length": 1}
    row = next(line for line in outcome.stdout.splitlines() if line.strip().startswith("length/2"))
    assert row.split()[1] == "2"
    assert row.count("±") >= 3
    differ = [
        weights(f"out/length/{run}")["policy.lm_head.weight"]
        for run in ("1/seed_0", "1/seed_1", "2/seed_0")
    ]
    assert not torch.equal(differ[0], differ[1])
    assert not torch.equal(differ[0], differ[2])

    _goes_on_where_it_stopped()
    _survives_a_kill()


def _goes_on_where_it_stopped():
    """Finished runs stay; new ones may be added; other settings are refused."""
    before = index()
    outcome = command_line.run(*sweep("--overlays", "length", "--seeds", "0", "1"))
    assert outcome.code == 0
    assert "[1/" not in outcome.stdout
    assert "length/2" in outcome.stdout
    assert index() == before
    more = sweep("--overlays", "length", "--seeds", "1", "2", "--base", "--dry_run")
    outcome = command_line.run(*more)
    commands = outcome.stdout.splitlines()
    assert len(commands) == 4
    assert sum("--config length" in command for command in commands) == 2
    assert sum("--model.seed 2" in command for command in commands) == 3
    assert index() == before
    outcome = command_line.run(*sweep("--overlays", "length", steps="4"))
    assert outcome.code == 2
    assert "trainer.max_steps: 3, now 4" in outcome.stderr
    write(Path("length/2.yaml"), model={"rollout_length": 4})
    outcome = command_line.run(*sweep("--overlays", "length"))
    assert outcome.code == 2
    assert "length/2: model.rollout_length: 2, now 4" in outcome.stderr
    write(Path("length/2.yaml"), model={"rollout_length": 2})
    assert index() == before


def _survives_a_kill():
    """A run that fails, and one that is killed with its sweep."""
    words = sweep("--overlays", "segments", "length/2.yaml", out="killed")
    Path("hold").touch()
    process = start(words)
    wait_for("reached", process)
    (run,) = children(process.pid)
    process.kill()
    process.wait()
    assert statuses("killed") == {
        "segments/too_many/seed_0": "failed",
        "length/2/seed_0": "running",
    }
    refused = command_line.run(*words)
    assert refused.code == 2
    assert "another sweep works in killed, or has left a run behind" in refused.stderr
    os.kill(run, signal.SIGKILL)
    Path("hold").unlink()
    for _ in range(200):
        if not Path(f"/proc/{run}").exists():
            break
        time.sleep(0.05)

    outcome = command_line.run(*words)
    assert outcome.code == 1
    assert "[1/1] length/2 seed 0 ... done" in outcome.stdout
    assert "FAILED segments/too_many seed 0: error: 40 segments do not fit" in outcome.stdout
    assert "killed/segments/too_many/seed_0/run.log" in outcome.stdout
    log = Path("killed/length/2/seed_0/run.log").read_text()
    assert log.count("$ ") == 2
    assert "--ckpt_path killed/length/2/seed_0/checkpoints/resumed_from.ckpt" in log
    checkpoints = {p.name for p in Path("killed/length/2/seed_0/checkpoints").iterdir()}
    assert "last.ckpt" in checkpoints
    assert "resumed_from.ckpt" not in checkpoints
    alone, resumed = weights("out/length/2/seed_0"), weights("killed/length/2/seed_0")
    for name, value in alone.items():
        assert torch.equal(value, resumed[name]), name
    assert last_validation("out/length/2/seed_0") == last_validation("killed/length/2/seed_0")


@pytest.fixture
def stub(place, monkeypatch):
    program = (sys.executable, str(place / "stub.py"))
    monkeypatch.setattr("refine_pl.sweep.loop.PROGRAM", program)
    return place


def test_failures_are_retried_only_on_demand(stub):
    words = sweep("--overlays", "length", "--seeds", "5")
    Path("no_fit").touch()
    outcome = command_line.run(*words)
    assert outcome.code == 1
    assert set(statuses().values()) == {"failed"}
    assert "FAILED length/1 seed 5: error: no luck way out: another day" in outcome.stdout
    assert "2 failed; --retry runs them again" in outcome.stdout
    Path("no_fit").unlink()
    assert command_line.run(*words).code == 1
    assert set(statuses().values()) == {"failed"}
    words.insert(1, "--retry")
    assert command_line.run(*words).code == 0
    assert set(statuses().values()) == {"done"}
    assert all(entry["error"] is None for entry in index()["entries"])


def test_a_test_after_each_run_is_a_stage_of_its_own(stub):
    write(Path("niah.yaml"), data={})
    words = sweep("--overlays", "length/1.yaml")
    assert command_line.run(*words).code == 0
    Path("no_test").touch()
    words[1:1] = ["--eval", "niah.yaml"]
    outcome = command_line.run(*words)
    assert outcome.code == 1
    assert "done, test FAILED" in outcome.stdout
    (entry,) = index()["entries"]
    assert entry["status"] == "done"
    assert entry["test"]["status"] == "failed"
    assert entry["test"]["folder"] == "length/1/seed_0/test"
    Path("no_test").unlink()
    outcome = command_line.run(*words)
    assert outcome.code == 1  # not without --retry
    again = sweep("--retry", "--overlays", "length/1.yaml")  # the test is in the index
    assert command_line.run(*again).code == 0
    (entry,) = index()["entries"]
    assert entry["test"] | {"seconds": 0} == {
        "folder": "length/1/seed_0/test",
        "status": "done",
        "seconds": 0,
        "error": None,
    }
    run = Path("out/length/1/seed_0")
    assert (run / "run.log").read_text().count("$ ") == 1
    log = (run / "test.log").read_text()
    assert log.count("$ ") == 2
    assert (
        f"test --config niah.yaml --ckpt_path {run}/checkpoints/last.ckpt --out {run}/test" in log
    )
    write(Path("other.yaml"), data={})
    words[words.index("niah.yaml")] = "other.yaml"
    outcome = command_line.run(*words)
    assert outcome.code == 2
    assert '--eval: "niah.yaml", now "other.yaml"' in outcome.stderr


@pytest.mark.parametrize("code", [130, 143, 129, 138, -2, -15, -1, -10])
def test_a_run_that_was_asked_to_stop_is_not_done_and_runs_again(stub, code):
    """It may have noticed the signal, or just ended."""
    Path("killed").write_text(str(code))
    words = sweep("--overlays", "length")
    outcome = command_line.run(*words)
    assert outcome.code == 1
    assert statuses() == {"length/1/seed_0": "interrupted", "length/2/seed_0": "done"}
    assert f"1 interrupted; to go on: refine-pl {' '.join(words)}" in outcome.stdout
    assert "FAILED" not in outcome.stdout
    outcome = command_line.run(*words)
    assert outcome.code == 0
    assert "[1/1] length/1 seed 0 ... done" in outcome.stdout
    assert set(statuses().values()) == {"done"}


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_the_run_too_and_says_how_to_go_on(stub, name, code):
    Path("hold").touch()

    def press():
        wait_for("reached")
        os.kill(os.getpid(), getattr(signal, name))

    presser = threading.Thread(target=press)
    presser.start()
    try:
        words = sweep("--overlays", "length")
        outcome = command_line.run(*words)
    finally:
        presser.join()
    assert outcome.code == code
    command = "refine-pl sweep --config tiny.yaml --out out --overlays length"
    called = "Ctrl-C" if name == "SIGINT" else name
    assert f"interrupted by {called}; to go on: {command}" in outcome.stderr
    assert statuses() == {"length/1/seed_0": "interrupted", "length/2/seed_0": "pending"}
    assert "KeyboardInterrupt" in Path("out/length/1/seed_0/run.log").read_text()
    Path("hold").unlink()
    assert command_line.run(*words).code == 0
    assert set(statuses().values()) == {"done"}


def test_two_runs_at_a_time_share_the_cores(stub, monkeypatch):
    Path("meet").touch()
    monkeypatch.delenv("OMP_NUM_THREADS")
    outcome = command_line.run(*sweep("--overlays", "length", "--seeds", "0", "1", "--jobs", "2"))
    assert outcome.code == 0
    lines = outcome.stdout.splitlines()
    assert lines[:2] == ["[1/4] length/1 seed 0 ... ", "[2/4] length/1 seed 1 ... "]
    assert sum("seed 1 ... done" in line for line in lines) == 2
    assert set(statuses().values()) == {"done"}
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    for run in statuses():
        assert f"threads {share}" in Path("out", run, "run.log").read_text()


def test_a_signal_ends_all_runs_and_keeps_what_had_finished(stub):
    Path("meet").touch()
    Path("hold").write_text("2")

    def press():
        for number in (1, 2):
            wait_for(f"reached_{number}")
        os.kill(os.getpid(), signal.SIGTERM)

    presser = threading.Thread(target=press)
    presser.start()
    words = sweep("--overlays", "length", "--jobs", "2")
    try:
        outcome = command_line.run(*words)
    finally:
        presser.join()
    assert outcome.code == 143
    assert statuses() == {"length/1/seed_0": "interrupted", "length/2/seed_0": "done"}
    for name in Path().glob("here_*"):
        assert not Path("/proc", name.name.removeprefix("here_")).exists()
    Path("hold").unlink()
    assert command_line.run(*words).code == 0
    assert set(statuses().values()) == {"done"}
    assert Path("out/length/2/seed_0/run.log").read_text().count("$ ") == 1


WRONG = {
    "no runs at a time": (["--jobs", "0"], "invalid number of runs"),
    "a folder that holds something": (
        ["--out", "docs"],
        "docs holds something that is not a sweep",
    ),
    "an overlay that is not there": (
        ["--overlays", "lenght"],
        "there is no file or folder lenght",
    ),
    "a wrong overlay": (["--overlays", "wrong.yaml"], "model.rollout_len is not a known key"),
    "a seed twice": (["--seeds", "1", "1"], "a seed is given twice"),
    "no number": (["--seeds", "one"], "invalid seed"),
    "an option of fit before the dashes": (
        ["--trainer.max_steps", "3"],
        "options for every run come after --",
    ),
    "no configuration of a test": (["--eval", "gone.yaml"], "no configuration file gone.yaml"),
    "names that meet": (
        ["--overlays", "length/1.yaml", "more/length/1.yaml"],
        "are both called length/1",
    ),
    "a place of its own": (["--config", "placed.yaml"], "every run would write into here"),
    "no logger": (["--config", "unlogged.yaml"], "gives a run no folder of its own"),
    "no effect": (
        ["--config", "staged.yaml", "--overlays", "length/1.yaml"],
        "model.rollout_length of length/1 has no effect",
    ),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_said_before_anything_runs(words, message, place):
    write(Path("wrong.yaml"), model={"rollout_len": 3})
    Path("more").mkdir()
    write(Path("more/length/1.yaml"), model={"rollout_length": 3})
    spec = command_line.CONFIG["trainer"]["callbacks"][0]
    placed = {"class_path": spec["class_path"], "init_args": {"dirpath": "here"}}
    write(Path("placed.yaml"), trainer={"callbacks": [placed]})
    write(Path("unlogged.yaml"), trainer={"logger": False})
    stages = {"one": {"iterations": 1, "ramp": {"rollout_length": [1, 3]}}}
    schedule = {"class_path": "refine_pl.training.Schedule", "init_args": {"stages": stages}}
    write(Path("staged.yaml"), trainer={"callbacks": [schedule]})
    there = sorted(place.rglob("*"))
    outcome = command_line.run("sweep", "--config", "tiny.yaml", "--out", "out", *words)
    assert outcome.code == 2
    assert message in " ".join(outcome.stderr.split())
    assert sorted(place.rglob("*")) == there
