"""What processes that share a training do, for ``run_processes``."""

import os

import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from runs import Curve, RowsData, StopAfter, backbone, every_batch, module, trainer
from torch.distributed.tensor import DTensor

from refine_pl.callbacks import RandomState
from refine_pl.losses import LossSum
from refine_pl.rewards import EmbeddingSimilarity, ExactMatch

ITERATIONS = 4
STRATEGIES = {"ddp": DDPStrategy, "fsdp": ModelParallelStrategy}
HARD_ROW = 1  # of every batch: too short for rollouts in one of them, not finite in another


def whole(value):
    """A copy of a tensor, put together if it is sharded."""
    value = value.full_tensor() if isinstance(value, DTensor) else value
    return value.detach().clone()


class Seen(Callback):
    """What each process saw: its rows, what it drew for them, and the gradients of each update."""

    def __init__(self):
        self.documents, self.drawn, self.gradients = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.documents.append(dict(zip(batch.rows, batch.documents, strict=True)))
        self.drawn.append({})

    def on_experience(self, trainer, pl_module, experience):
        rollouts, rewards = experience.rollouts, experience.rewards
        for i, row in enumerate(experience.batch.rows):
            valid = rollouts.valid[i]
            self.drawn[-1][row] = {
                "positions": rollouts.positions.index[i][valid],
                "tokens": rollouts.tokens[i][valid],
                "rewards": rewards[i][valid],
            }

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.policy.named_parameters()
        self.gradients.append({n: whole(p.grad) for n, p in named if p.grad is not None})


class Sometimes(ExactMatch):
    """Tells rollouts apart also where none is right."""

    def score(self, rollouts):
        return super().score(rollouts) + 0.1 * rollouts.tokens.double().mean(-1) / 257


class UnevenData(RowsData):
    """Rows of other lengths; one is too short for rollouts, so one process may have none."""

    def __init__(self):
        super().__init__(batch_size=8, num_rows=40, ragged=True, validation_batch_size=4)
        self.validation.rows = self.validation.rows[:5]  # an uneven last batch

    def on_after_batch_transfer(self, batch, dataloader_idx):
        model = self.trainer.lightning_module
        if self.trainer.training and model.iteration == 2:
            short = torch.tensor([row % 4 == HARD_ROW for row in batch.rows])
            batch.num_tokens = batch.num_tokens.masked_fill(short, 12)
        return batch


def _broken_once(model):
    """The loss of one row, so on one process, is not finite in the second iteration."""
    loss = model.refine_step.loss

    def broken(policy, experience, *args):
        batch = getattr(experience, "batch", experience)
        made = loss(policy, experience, *args)
        factor = float("nan") if model.iteration == 1 and HARD_ROW in batch.rows else 1
        return LossSum(made.total * factor, made.sums)

    model.refine_step.loss = broken


def train(strategy, folder, ckpt_path=None):
    """Train a model in float64 for some iterations, and save after each.

    Args:
        strategy: ``one``, ``ddp`` or ``fsdp``.
        folder: of the checkpoints.
        ckpt_path: where to go on from.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    seed_everything(0, verbose=False)
    # Several processes run layers twice, one alone keeps what they computed: the same numbers.
    again = strategy != "one"
    model = module(
        backbone(tie_word_embeddings=True, activation_checkpointing=again).double(),
        rewards={"similarity": EmbeddingSimilarity(), "match": Sometimes()},
        minibatch_size=4,
        kl_weight=0.05,
    )
    _broken_once(model)
    curve, seen = Curve(), Seen()
    run = trainer(
        RandomState(),
        curve,
        seen,
        every_batch(folder),
        StopAfter(ITERATIONS),
        devices=processes,
        strategy="auto" if strategy == "one" else STRATEGIES[strategy](),
        enable_checkpointing=True,
        limit_val_batches=1.0,
        val_check_interval=2,
    )
    run.fit(model, datamodule=UnevenData(), ckpt_path=ckpt_path)
    sharded = [isinstance(p, DTensor) for p in model.parameters()]
    assert all(sharded) if strategy == "fsdp" else not any(sharded)
    return {
        "curve": curve.values,
        "validations": curve.validations,
        "documents": seen.documents,
        "drawn": seen.drawn,
        "gradients": seen.gradients,
        "policy": {name: whole(v) for name, v in model.policy.state_dict().items()},
        "reference": {name: whole(v) for name, v in model.reference.state_dict().items()},
        "skipped": model.counters.skipped_steps,
        "tokens_seen": model.tokens_seen,
        "global_step": run.global_step,
    }


def fail_in_the_second():
    """Fails in one of the processes that run it."""
    if os.environ["RANK"] == "1":
        raise ValueError("of the second")
