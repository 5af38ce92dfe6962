"""Sharded weights (FSDP2): they are exported, chosen by an overlay, and laid out over all ranks.

What they learn: ``test_shared_training.py``.
"""

import subprocess
import sys

import command_line
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from processes import run_processes
from recipes import CONFIGS, write_small
from runs import trainer
from safetensors.torch import load_file
from shared_runs import train

from refine_pl.errors import ConfigError
from refine_pl.training.trainer_checks import check_sharding


@pytest.mark.distributed
@pytest.mark.slow
def test_export_is_the_policy(tmp_path):
    sharded, _ = run_processes(train, 2, "fsdp", tmp_path)
    checkpoint = tmp_path / "step=8.ckpt"
    assert checkpoint.is_dir()
    outcome = command_line.run("export", "--ckpt_path", checkpoint, "--out", tmp_path / "exported")
    assert outcome.code == 0, outcome.stderr
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert set(sharded["policy"]) - set(exported) == {"lm_head.weight"}  # tied
    for name, value in exported.items():
        assert torch.equal(value, sharded["policy"][name]), name


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "model"), [("lact_tiny_mid", "LaCT"), ("qwen3.5_tiny_mid", "Qwen35")]
)
def test_command_line(recipe, model, tmp_path):
    """An overlay on a recipe; then its checkpoint where it cannot be read."""
    small = write_small(CONFIGS / f"{recipe}.yaml", tmp_path)
    words = ["fit", "--config", small, "--trainer.devices", "2"]
    options = ["--config", CONFIGS / "hardware" / "fsdp2.yaml", "--trainer.accelerator", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "refine_pl", *words[:3], *options, *words[3:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{model}, " in done.stdout
    (checkpoint,) = (tmp_path / "runs").rglob("last.ckpt")
    assert {path.name for path in checkpoint.iterdir()} > {"meta.pt", ".metadata"}
    assert not list(checkpoint.parent.glob(".*"))  # whole folders, and nothing left beside them
    outcome = command_line.run("fit", "--config", small, "--ckpt_path", checkpoint)
    assert outcome.code == 2
    assert "refine-pl export" in outcome.stderr


@pytest.mark.parametrize(
    ("options", "fn", "says"),
    [
        ({}, TrainerFn.FITTING, None),
        ({"data_parallel_size": 2, "tensor_parallel_size": 1}, TrainerFn.VALIDATING, None),
        ({"tensor_parallel_size": 2}, TrainerFn.FITTING, "no layer is split"),
        ({"data_parallel_size": 1}, TrainerFn.FITTING, "no layer is split"),
        ({}, TrainerFn.TESTING, "refine-pl export"),
    ],
)
def test_layout_of_processes(options, fn, says):
    run = trainer(strategy=ModelParallelStrategy(**options), devices=2)
    run.state.fn = fn
    if says is None:
        check_sharding(run)
        assert (run.strategy._data_parallel_size, run.strategy._tensor_parallel_size) == (2, 1)
    else:
        with pytest.raises(ConfigError) as error:
            check_sharding(run)
        assert says in str(error.value)
