"""Post-training and test-time training, for ``run_processes``."""

import os

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from runs import Curve, module, trainer
from task_runs import TaskRowsData

from refine_pl.objectives import SupervisedAnswers, TaskReward
from refine_pl.training import PostTraining, TestTimeTraining


class Collect(Callback):
    """The policy that each row was answered with, as one number."""

    def __init__(self):
        self.norms = {}

    def on_test_batch_start(self, trainer, module, batch, *_):
        total = sum(float(p.double().sum()) for p in module.policy.parameters())
        self.norms |= {row.id: total for row in batch.task_rows}


class Shared(TaskRowsData):
    """Every process has test batches of its own."""

    def test_dataloader(self):
        loader = super().test_dataloader()
        loader.dataset[:] = loader.dataset[self.trainer.global_rank :: self.trainer.world_size]
        return loader


def train_and_test(objective):
    """Post-train with ``supervised`` or ``reward``, then test with test-time training."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    seed_everything(0, verbose=False)
    model = module(minibatch_size=4, microbatch_size=1)
    data = TaskRowsData(batch_size=8)
    data.training = [row._replace(answers=("e",)) for row in data.training]
    curve = Curve()
    outer = TaskReward(answers_per_prompt=8) if objective == "reward" else SupervisedAnswers()
    strategy = "ddp" if processes > 1 else "auto"
    options = {"devices": processes, "strategy": strategy, "precision": "64-true"}
    run = trainer(PostTraining(objective=outer), curve, iterations=3, **options)
    run.fit(model, datamodule=data)
    trained = {k: v.clone() for k, v in model.policy.state_dict().items()}

    seen = Collect()
    options |= {"inference_mode": False, "limit_test_batches": 1.0}
    tested = trainer(TestTimeTraining(), seen, **options)
    tested.test(model, datamodule=Shared(test_batch_size=2), verbose=False)
    restored = all(torch.equal(trained[k], v) for k, v in model.policy.state_dict().items())
    return {
        "curve": curve.values,
        "parameters": trained,
        "norms": seen.norms,
        "restored": restored,
        "updates": model.counters.updates,
    }
