"""What ``--ckpt_path`` may name, and what a resumed run takes from it."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from command_line import run, write_config, write_documents


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_documents(folder / "docs")
        write_config(folder / "own.yaml")
        outcome = run("fit", "--config", "own.yaml")
        assert outcome.code == 0, outcome.stderr
    return folder


@pytest.fixture
def workplace(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


LAST = Path("runs/own/version_0/checkpoints/last.ckpt")


def fit(*options, epochs=2):
    return run("fit", "--config", "own.yaml", "--trainer.max_epochs", epochs, *options)


def said(outcome):
    assert "Traceback" not in outcome.stderr
    return " ".join(outcome.stderr.split())


def test_last_is_the_newest_of_the_name(workplace):
    outcome = fit("--ckpt_path", "last")
    assert outcome.code == 0, outcome.stderr
    assert f"checkpoint: {LAST}" in outcome.stdout
    newest = Path("runs/own/version_1/checkpoints/last.ckpt")
    steps = [torch.load(p, weights_only=True)["refine_pl"]["iteration"] for p in (LAST, newest)]
    assert steps == [2, 4], "it went on, and not from scratch"
    os.utime(LAST, (1, 1))
    again = run("validate", "--config", "own.yaml", "--ckpt_path", "last")
    assert again.code == 0, again.stderr
    assert f"checkpoint: {newest}" in again.stdout
    os.utime(newest, (0, 0))
    assert f"checkpoint: {LAST}" in fit("--ckpt_path", "last").stdout


def test_last_that_is_not_there_is_no_start_from_scratch(workplace):
    for options in (
        ["--trainer.logger.init_args.name", "another"],
        ["--trainer.logger.init_args.save_dir", "elsewhere"],
        ["--checkpoint.dirpath", "elsewhere"],
        ["--trainer.logger", "false"],
    ):
        outcome = fit("--ckpt_path", "last", *options)
        assert outcome.code == 2
        assert "there is no last.ckpt in" in said(outcome) or "no folder to look in" in said(
            outcome
        )
    assert not Path("runs/another").exists()


@pytest.mark.parametrize("word", ["best", "hpc", "registry", "registry:model", "REGISTRY:a:1"])
def test_other_words_are_refused(workplace, word):
    outcome = fit("--ckpt_path", word)
    assert outcome.code == 2
    assert "--ckpt_path" in said(outcome)


def test_hpc_is_what_a_cluster_left(workplace):
    for number in (2, 10):
        shutil.copy(LAST, f"hpc_ckpt_{number}.ckpt")
    outcome = fit("--ckpt_path", "hpc")
    assert outcome.code == 0, outcome.stderr
    assert "checkpoint: hpc_ckpt_10.ckpt" in outcome.stdout


def test_a_folder_lists_its_checkpoints(workplace):
    for folder in ("runs", "runs/own/version_0", LAST.parent):
        outcome = fit("--ckpt_path", folder)
        assert outcome.code == 2
        assert "is a folder, not a checkpoint; it holds, newest first," in said(outcome)
        assert "last.ckpt" in said(outcome)
    assert "it holds none" in said(fit("--ckpt_path", "docs"))


SGD = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.01"]


def test_another_optimizer_is_named_or_begins_anew(workplace):
    outcome = fit("--ckpt_path", LAST, *SGD)
    assert outcome.code == 2
    assert "the state of torch.optim.adamw.AdamW, and this run trains with" in said(outcome)
    assert "torch.optim.sgd.SGD" in said(outcome)
    assert "--optimizer_state fresh" in said(outcome)
    outcome = fit("--ckpt_path", LAST, *SGD, "--optimizer_state", "fresh")
    assert outcome.code == 0, outcome.stderr
    begins = "optimizer: torch.optim.sgd.SGD begins with fresh state; the checkpoint holds that of"
    assert f"{begins} torch.optim.adamw.AdamW" in outcome.stdout


def test_weights_alone_are_named_or_the_optimizer_begins_anew(workplace):
    content = torch.load(LAST, weights_only=True)
    for key in ("optimizer_states", "lr_schedulers", "callbacks"):
        content.pop(key)
    torch.save(content, "bare.ckpt")
    outcome = fit("--ckpt_path", "bare.ckpt")
    assert outcome.code == 2
    assert "holds weights alone (save_weights_only), no state for" in said(outcome)
    outcome = fit("--ckpt_path", "bare.ckpt", "--optimizer_state", "fresh")
    assert outcome.code == 0, outcome.stderr
    assert "AdamW begins with fresh state; the checkpoint holds none" in outcome.stdout


def test_a_run_that_has_come_to_its_end_is_refused(workplace):
    outcome = fit("--ckpt_path", LAST, epochs=1)
    assert outcome.code == 2
    assert "nothing was trained:" in said(outcome)
    stages = ["--schedule.stages", "{a: {iterations: 2}}", "--trainer.max_epochs", "-1"]
    outcome = fit("--ckpt_path", LAST, *stages)
    assert outcome.code == 2
    assert "nothing is left to train: the checkpoint has made 2 iterations" in said(outcome)
    assert "--schedule.stages.a.iterations N" in said(outcome)
    outcome = fit("--ckpt_path", LAST, *stages, "--schedule.stages.a.iterations", "3")
    assert outcome.code == 0, outcome.stderr


@pytest.mark.parametrize("key", ["name", "version", "sub_dir"])
@pytest.mark.parametrize("value", ["../../x", "/tmp/refine_pl_x", "a/../../x"])
def test_a_name_does_not_lead_out_of_the_folder_of_runs(workplace, key, value):
    before = set(workplace.parent.rglob("*"))
    outcome = fit(f"--trainer.logger.init_args.{key}", value)
    assert outcome.code == 2
    assert "leads out of runs" in said(outcome)
    assert set(workplace.parent.rglob("*")) == before
    assert not Path("/tmp/refine_pl_x").exists()
