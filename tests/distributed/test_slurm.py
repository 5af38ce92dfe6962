"""A job that is queued again at its time limit ends as if it had not been interrupted."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import command_line
import pytest
import torch
from processes import run_processes
from slurm_jobs import CALLS, job, write_program, write_scontrol

from refine_pl.errors import ConfigError
from refine_pl.launch import Launch, launched, slurm_job

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = DOCS / "slurm.sh"
STAGES = {"warm-up": {"iterations": 2, "policy_weight": 0.0}, "refine": {"iterations": 4}}
EDITS = {
    "schedule.stages": STAGES,
    "trainer.max_epochs": command_line.GONE,
    "trainer.callbacks": [],
    "trainer.accelerator": "cpu",
    "data.init_args.num_validation_documents": 2,
    "data.init_args.corpus.init_args.paths": "docs/*.txt",
}


@pytest.fixture
def folder(tmp_path):
    command_line.write_documents(tmp_path / "docs", number=8)
    command_line.write_config(tmp_path / "run.yaml", EDITS)
    write_scontrol(tmp_path)
    return tmp_path


def signalled(iteration):
    """An option: the scheduler sends its signal at an iteration."""
    callback = {"class_path": "slurm_jobs.SignalAt", "init_args": {"iteration": iteration}}
    return f"--trainer.callbacks={json.dumps([callback])}"


def fit(folder, number, processes, *words, code=0):
    """A start of a job; what its first process wrote."""
    words = ("fit", "--config", "run.yaml", *words)
    done = run_processes(job, processes, str(folder), str(number), *words)
    assert [process["code"] for process in done] == [code] * processes, done[0]
    return done[0]["stdout"]


def final(folder, version):
    """What a finished run left: weights, optimizer, random generators, place in the data."""
    path = folder / "runs" / "run" / f"version_{version}" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path / "meta.pt" if path.is_dir() else path, weights_only=True)
    loops = checkpoint["loops"]["fit_loop"]["state_dict"]
    random = checkpoint["callbacks"]["RandomState"]
    return [checkpoint["state_dict"], checkpoint["optimizer_states"], random, loops]


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_that_is_queued_again_goes_on_exactly(folder, processes):
    whole = fit(folder, 1, processes)
    assert "time is up" not in whole
    for signal_at in (2, 4):  # the last iteration of a stage, and one in the middle
        said = fit(folder, 2, processes, signalled(signal_at))
        assert "job 2 is queued again" in said
    assert (folder / CALLS).read_text() == "requeue 2\n" * 2
    checkpoints = [path.name for path in (folder / "runs" / "run" / "job_2").iterdir()]
    assert checkpoints == ["hpc_ckpt_2.ckpt"]
    fit(folder, 2, processes)
    (kept, *_), (gone_on, *_) = final(folder, 0), final(folder, 3)
    assert kept
    assert equal(final(folder, 0), final(folder, 3))
    assert not equal(kept, {name: value + 1 for name, value in gone_on.items()})


def test_scontrol_fails(folder):
    write_scontrol(folder, code=1)
    said = fit(folder, 3, 1, signalled(3), code=128 + signal.SIGUSR1)
    path = "runs/run/job_3/hpc_ckpt_1.ckpt"
    assert f"could not be queued again, continue with --ckpt_path {path}" in said
    assert (folder / path).is_file()


def test_the_script_of_the_page(folder):
    """It is written as the page shows it, and starts a run with the options that it is given."""
    assert f"```text\n{SCRIPT.read_text()}```" in (DOCS / "clusters.md").read_text()
    write_program(folder, "refine-pl", f'exec {sys.executable} -m refine_pl "$@"')
    one = "SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0"
    write_program(
        folder,
        "srun",
        f'while case "$1" in -*) ;; *) false;; esac; do shift; done\nexec env {one} "$@"',
    )
    environ = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "9"}
    done = subprocess.run(
        ["bash", str(SCRIPT), "--config", "run.yaml"],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "run folder   runs/run/version_0" in done.stdout
    assert "SLURM auto-requeueing enabled" in done.stderr
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", SCRIPT.read_text(), re.MULTILINE))
    assert options["signal"].startswith(
        "USR1@"
    )  # what SLURMEnvironment waits for; to all processes
    assert options["ntasks-per-node"] == options["gpus-per-node"]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, None),  # inside of a job, but not started by srun
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"}, None),
        ({"SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, Launch(1, 1)),
        (
            {"SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8", "SLURM_NNODES": "2"},
            Launch(8, 2),
        ),
        (
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "64", "LOCAL_WORLD_SIZE": "8"},
            Launch(8, 8),
        ),
    ],
)
def test_who_started_the_processes(environ, expected):
    assert launched(environ) == expected
    assert slurm_job(environ | {"SLURM_JOB_ID": "7"}) == ("7" if _by_srun(environ) else None)


def _by_srun(environ):
    return "SLURM_NTASKS" in environ and "SLURM_JOB_NAME" not in environ


def test_tasks_on_nobody_knows_which_machine():
    with pytest.raises(ConfigError, match="ntasks-per-node"):
        launched({"SLURM_NTASKS": "4"})
