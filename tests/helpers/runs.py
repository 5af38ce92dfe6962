"""Small training runs: rows of tokens as data, a tiny DeltaNet, a trainer that stays quiet."""

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from refine_pl.backbones import DeltaNet
from refine_pl.data import BatchOrder, Bytes, ResumableLoader, TokenSequence
from refine_pl.data.loader import collate
from refine_pl.selectors import Entropy
from refine_pl.training.module import RefineModule

VOCAB_SIZE = 257


class Rows(Dataset):
    """Rows of bytes with some order in them, so that there is something to learn."""

    def __init__(self, lengths, seed):
        generator = torch.Generator().manual_seed(seed)
        steps = [torch.randint(1, 4, (length,), generator=generator) for length in lengths]
        self.rows = [97 + step.cumsum(0) % 26 for step in steps]

    def __getitem__(self, key):
        pairs = zip(key.indices, key.rows, strict=True)
        return [TokenSequence(self.rows[i], number, f"document {i}") for i, number in pairs]


class RowsData(LightningDataModule):
    """Batches as the project's own data make them, from a few rows in memory."""

    def __init__(self, batch_size=4, num_rows=12, length=72, ragged=False, validation_batch_size=3):
        super().__init__()
        self.batch_size = batch_size
        self.sequence_length = length
        self.validation_batch_size = validation_batch_size
        self.tokenizer = Bytes()
        lengths = [length - (7 * i) % 23 if ragged else length for i in range(num_rows)]
        self.training = Rows(lengths, seed=1)
        self.validation = Rows([length - (5 * i) % 11 for i in range(6)], seed=2)

    def _order(self, num_rows, batch_size, training):
        trainer = self.trainer
        return BatchOrder(
            num_rows,
            batch_size,
            seed=3,
            rank=trainer.global_rank,
            num_ranks=trainer.world_size,
            training=training,
        )

    def train_dataloader(self):
        order = self._order(len(self.training.rows), self.batch_size, True)
        return ResumableLoader(self.training, order, "rows")

    def val_dataloader(self):
        order = self._order(len(self.validation.rows), self.validation_batch_size, False)
        return DataLoader(self.validation, sampler=order, batch_size=None, collate_fn=collate)


def backbone(seed=0, **options):
    fields = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_heads": 2,
        "intermediate_size": 32,
        "initializer_range": 0.2,
    }
    torch.manual_seed(seed)
    return DeltaNet(**fields | options)


def module(policy=None, **options):
    settings = {
        "selector": Entropy(min_prefix=8, min_suffix=8),
        "optimizer": lambda params: torch.optim.AdamW(params, lr=1e-2),
        "num_segments": 2,
        "rollouts_per_position": 2,
        "rollout_length": 3,
        "minibatch_size": 2,
        "microbatch_size": 1,
    }
    return RefineModule(backbone() if policy is None else policy, **settings | options)


class Curve(Callback):
    """What every iteration logged."""

    def __init__(self):
        self.values = []
        self.validations = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.values.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    def on_validation_end(self, trainer, pl_module):
        metrics = trainer.callback_metrics
        values = {k: float(v) for k, v in metrics.items() if k.startswith("val/")}
        self.validations.append((pl_module.iteration, values))

    def __getitem__(self, name):
        return [values[name] for values in self.values]


def trainer(*callbacks, iterations=None, **options):
    """A trainer without output; ``iterations`` batches if given, else until something stops it."""
    if iterations is not None:
        callbacks = (*callbacks, StopAfter(iterations))
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "use_distributed_sampler": False,
        "max_epochs": -1,
        "log_every_n_steps": 1,
    }
    return Trainer(callbacks=list(callbacks), **settings | options)


def every_batch(folder, updates_per_batch=2):
    """Saves ``step=<updates>.ckpt`` after every batch."""
    return ModelCheckpoint(
        folder, "{step}", every_n_train_steps=updates_per_batch, save_top_k=-1, save_last=False
    )


class StopAfter(Callback):
    """Stops a run when so many batches are finished."""

    def __init__(self, iterations):
        self.iterations = iterations

    def on_train_batch_end(self, trainer, pl_module, *_):
        trainer.should_stop = trainer.should_stop or pl_module.iteration >= self.iterations


def train(model, data=None, iterations=3, callbacks=(), ckpt_path=None, **options):
    """Train, and return what was logged."""
    curve = Curve()
    run = trainer(*callbacks, curve, iterations=iterations, **options)
    run.fit(model, datamodule=data or RowsData(), ckpt_path=ckpt_path)
    return curve


def parameters(model):
    return {name: p.detach().clone() for name, p in model.policy.named_parameters()}


def assert_same_parameters(one, other, **tolerance):
    for name, value in parameters(one).items():
        torch.testing.assert_close(value, parameters(other)[name], **tolerance)
