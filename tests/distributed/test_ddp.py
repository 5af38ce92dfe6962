"""Two processes learn what one process learns, from the same configuration."""

import pytest
import torch
from scripts import run_script

SCRIPT = """
import sys

import torch
from lightning.pytorch import seed_everything
from refine_pl.callbacks import RandomState
from refine_pl.training import Schedule, Stage
from refine_pl.rewards import ExactMatch, EmbeddingSimilarity
from runs import Curve, RowsData, module, trainer

devices, path, broken = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "broken"


class Sometimes(ExactMatch):
    def score(self, rollouts):
        return super().score(rollouts) + 0.1 * rollouts.tokens.float().mean(-1) / 257


class Data(RowsData):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        # One process alone meets rows that are too short for rollouts.
        if broken:
            short = torch.tensor([row == 1 for row in batch.rows])
            batch.num_tokens = batch.num_tokens.masked_fill(short, 12)
        return batch


seed_everything(0)
rewards = {"similarity": EmbeddingSimilarity(), "match": Sometimes()}
model = module(rewards=rewards, minibatch_size=4, microbatch_size=1, kl_weight=0.05)
data = Data(batch_size=8, num_rows=24, ragged=True, validation_batch_size=4)
data.validation.rows = data.validation.rows[:4]
curve = Curve()
schedule = Schedule({"warm-up": Stage(2, policy_weight=0.0), "refine": Stage(3)})
run = trainer(
    RandomState(),
    schedule,
    curve,
    devices=devices,
    strategy="ddp" if devices > 1 else "auto",
    precision="64-true",
    limit_val_batches=1.0,
)
run.fit(model, datamodule=data)
run.save_checkpoint(path + ".ckpt")
if run.is_global_zero:
    torch.save({"curve": curve.values, "validations": curve.validations,
                "global_step": run.global_step, "tokens_seen": model.tokens_seen,
                "parameters": dict(model.policy.state_dict())}, path)
"""


def train(folder, devices, kind):
    path = folder / f"{devices}.pt"
    run_script(folder / "train.py", SCRIPT, devices, path, kind)
    return torch.load(path, weights_only=True)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "broken"])
def test_two_processes_equal_one(tmp_path, kind):
    one, two = train(tmp_path, 1, kind), train(tmp_path, 2, kind)
    assert one["global_step"] == two["global_step"] == 5 * 2
    assert one["tokens_seen"] == two["tokens_seen"] > 0
    names = [name for name in one["curve"][-1] if not name.startswith(("time/", "memory/"))]
    assert "reward/match/mean" in names
    for here, there in zip(one["curve"], two["curve"], strict=True):
        for name in names:
            expected = pytest.approx(here.get(name), rel=1e-6, abs=1e-9)
            assert there.get(name) == expected, name
    for here, there in zip(one["validations"], two["validations"], strict=True):
        assert there[0] == here[0]
        assert there[1] == pytest.approx(here[1], rel=1e-6)
    for name, value in one["parameters"].items():
        torch.testing.assert_close(two["parameters"][name], value, rtol=1e-6, atol=1e-6)
    checkpoint = torch.load(tmp_path / "2.pt.ckpt", weights_only=True)
    assert len(checkpoint["callbacks"]["RandomState"]["states"]) == 2
