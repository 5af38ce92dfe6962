"""Post-training on two processes is post-training on one; test-time training stays on its own."""

import pytest
import torch
from scripts import run_script

SCRIPT = """
import sys

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from refine_pl.training import PostTraining, TestTimeTraining
from refine_pl.objectives import SupervisedAnswers, TaskReward
from runs import Curve, module, trainer
from task_runs import TaskRowsData

devices, path, objective = int(sys.argv[1]), sys.argv[2], sys.argv[3]
seed_everything(0)
model = module(minibatch_size=4, microbatch_size=1)
data = TaskRowsData(batch_size=8)
data.training = [row._replace(answers=("e",)) for row in data.training]
curve = Curve()
outer = TaskReward(answers_per_prompt=8) if objective == "reward" else SupervisedAnswers()
options = dict(devices=devices, strategy="ddp" if devices > 1 else "auto", precision="64-true")
run = trainer(PostTraining(objective=outer), curve, iterations=3, **options)
run.fit(model, datamodule=data)
trained = {k: v.clone() for k, v in model.policy.state_dict().items()}


class Collect(Callback):
    def __init__(self):
        self.norms = {}

    def on_test_batch_start(self, trainer, module, batch, *_):
        total = sum(float(p.double().sum()) for p in module.policy.parameters())
        self.norms |= {row.id: total for row in batch.task_rows}


class Shared(TaskRowsData):
    def test_dataloader(self):
        loader = super().test_dataloader()
        loader.dataset[:] = loader.dataset[self.trainer.global_rank :: self.trainer.world_size]
        return loader


seen = Collect()
tested = trainer(TestTimeTraining(), seen, inference_mode=False, limit_test_batches=1.0, **options)
tested.test(model, datamodule=Shared(test_batch_size=2), verbose=False)
restored = all(torch.equal(trained[k], v) for k, v in model.policy.state_dict().items())
torch.save({"curve": curve.values, "parameters": trained, "norms": seen.norms,
            "restored": restored, "updates": model.counters.updates}, f"{path}.{run.global_rank}")
"""


def train(folder, devices, kind):
    path = folder / f"{devices}.pt"
    run_script(folder / "train.py", SCRIPT, devices, path, kind)
    return [torch.load(f"{path}.{rank}", weights_only=True) for rank in range(devices)]


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["supervised", "reward"])
def test_two_processes_equal_one(tmp_path, kind):
    (one,), two = train(tmp_path, 1, kind), train(tmp_path, 2, kind)
    assert one["updates"] == two[0]["updates"] == 3 * 3
    names = [name for name in one["curve"][-1] if not name.startswith("time/")]
    assert ("answer/score" if kind == "reward" else "train/sft_loss") in names
    for here, there in zip(one["curve"], two[0]["curve"], strict=True):
        for name in names:
            assert there[name] == pytest.approx(here[name], rel=1e-6, abs=1e-9), name
    for name, value in one["parameters"].items():
        torch.testing.assert_close(two[0]["parameters"][name], value, rtol=1e-6, atol=1e-6)
    # Batches of test rows are whole: each was trained on by one process, with the same result.
    assert one["restored"]
    assert two[0]["restored"]
    assert two[1]["restored"]
    assert len(two[0]["norms"]) + len(two[1]["norms"]) == len(one["norms"]) == 5
    assert two[0]["norms"] | two[1]["norms"] == pytest.approx(one["norms"], rel=1e-9)
