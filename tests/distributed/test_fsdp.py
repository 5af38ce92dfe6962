"""Two processes with sharded weights (FSDP2) learn what one process learns, resume, and export."""

import subprocess
import sys

import command_line
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from recipes import CONFIGS, write_small
from runs import trainer
from safetensors.torch import load_file
from scripts import run_script

from refine_pl.errors import ConfigError
from refine_pl.training.trainer_checks import check_sharding

SCRIPT = """
import sys

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor
from refine_pl.losses import LossSum
from refine_pl.callbacks import RandomState
from runs import Curve, RowsData, StopAfter, backbone, every_batch, module, trainer

devices, folder, ckpt_path = int(sys.argv[1]), sys.argv[2], sys.argv[3] or None


def whole(model):
    state = {} if model is None else model.state_dict()
    return {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in state.items()}


seed_everything(0)
model = module(backbone(tie_word_embeddings=True).double(), minibatch_size=4, kl_weight=0.05)
data = RowsData(batch_size=8, num_rows=32, ragged=True, validation_batch_size=2)
data.validation.rows = data.validation.rows[:5]  # one process gets a batch less than the other
loss = model.refine_step.loss


def broken(policy, experience, *args):
    # One row, so on one process, in the second iteration.
    batch = getattr(experience, "batch", experience)
    made = loss(policy, experience, *args)
    factor = float("nan") if model.iteration == 1 and 1 in batch.rows else 1
    return LossSum(made.total * factor, made.sums)


model.refine_step.loss = broken
curve = Curve()
run = trainer(
    RandomState(), curve, every_batch(folder), StopAfter(4),
    devices=devices,
    strategy=ModelParallelStrategy() if devices > 1 else "auto",
    enable_checkpointing=True,
    limit_val_batches=1.0,
    val_check_interval=2,
)
run.fit(model, datamodule=data, ckpt_path=ckpt_path)
sharded = [isinstance(p, DTensor) for p in model.parameters()]
assert sharded and all(sharded) if devices > 1 else not any(sharded)
policy, reference = whole(model.policy), whole(model.reference)
if run.is_global_zero:
    torch.save({"curve": curve.values, "validations": curve.validations, "policy": policy,
                "reference": reference, "skipped": model.counters.skipped_steps}, folder + ".pt")
"""


def train(folder, devices, ckpt_path=""):
    run_script(folder.with_suffix(".py"), SCRIPT, devices, folder, ckpt_path)
    return torch.load(folder.with_suffix(".pt"), weights_only=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def sharded(folder):
    return train(folder / "sharded", 2)


@pytest.mark.distributed
@pytest.mark.slow
def test_two_sharded_processes_equal_one(folder, sharded):
    one = train(folder / "one", 1)
    assert one["skipped"] == sharded["skipped"] == 1
    assert len(one["curve"]) == len(sharded["curve"]) == 4
    assert {"train/kl", "optim/grad_norm", "val/ntp_loss"} <= set(one["curve"][-1])
    for here, there in zip(one["curve"], sharded["curve"], strict=True):
        for name in here:
            if not name.startswith(("time/", "memory/")):
                assert there[name] == pytest.approx(here[name], rel=1e-6, abs=1e-9), name
    for (_, here), (_, there) in zip(one["validations"], sharded["validations"], strict=True):
        assert there == pytest.approx(here, rel=1e-6)
    for model in ("policy", "reference"):
        assert one[model]
        for name, value in one[model].items():
            torch.testing.assert_close(sharded[model][name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.distributed
@pytest.mark.slow
def test_resume_is_exact(folder, sharded):
    resumed = train(folder / "resumed", 2, folder / "sharded" / "step=4.ckpt")
    assert len(resumed["curve"]) == 2
    losses = [[values["train/loss"] for values in run["curve"]] for run in (resumed, sharded)]
    assert losses[0] == losses[1][2:]
    for model in ("policy", "reference"):
        for name, value in sharded[model].items():
            assert torch.equal(resumed[model][name], value), name


@pytest.mark.distributed
@pytest.mark.slow
def test_export_is_the_policy(folder, sharded):
    checkpoint = folder / "sharded" / "step=8.ckpt"
    assert checkpoint.is_dir()
    outcome = command_line.run("export", "--ckpt_path", checkpoint, "--out", folder / "exported")
    assert outcome.code == 0, outcome.stderr
    exported = load_file(folder / "exported" / "model.safetensors")
    assert set(sharded["policy"]) - set(exported) == {"lm_head.weight"}  # tied
    for name, value in exported.items():
        assert torch.equal(value, sharded["policy"][name]), name


@pytest.mark.distributed
@pytest.mark.slow
def test_command_line(tmp_path):
    """An overlay on a recipe; then its checkpoint where it cannot be read."""
    small = write_small(CONFIGS / "lact_tiny_mid.yaml", tmp_path)
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
    assert "LaCT, " in done.stdout
    (checkpoint,) = (tmp_path / "runs").rglob("last.ckpt")
    assert (checkpoint / "meta.pt").is_file()
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
