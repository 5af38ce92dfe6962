"""A run that stops and resumes sees the same sequences as one that does not, under Lightning."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from refine_pl.data import Bytes, Corpus, TextData
from refine_pl.errors import CheckpointError, ConfigError
from refine_pl.records import Batch

BATCHES = 4  # of an epoch
EPOCHS = 3


class Lines(Corpus):
    def read(self):
        for i in range(20):
            yield f"d{i}", f"document {i:02d} " * 6


class Recorder(LightningModule):
    """One weight, stepped by hand; remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[tuple[int, str, int]]] = []
        self.validated: list[tuple[int, ...]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.weight * batch.tokens.float().mean())
        optimizer.step()
        checksums = [int(row.sum()) for row in batch.tokens]
        self.seen.append(list(zip(batch.rows, batch.documents, checksums, strict=True)))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validated.append(batch.rows)

    def on_train_end(self) -> None:
        if self.trainer.world_size > 1:
            folder = Path(self.trainer.default_root_dir)
            seen = {"seen": self.seen, "validated": self.validated}
            (folder / f"rank{self.trainer.global_rank}.json").write_text(json.dumps(seen))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data(tmp_path: Path, **changes) -> TextData:
    settings = {
        "sequence_length": 16,
        "batch_size": 4,
        "crop": "random",
        "num_validation_documents": 2,
        "cache_dir": str(tmp_path / "cache"),
    }
    return TextData(Lines(), Bytes(), **(settings | changes))


def fit(tmp_path: Path, datamodule: TextData, *, ckpt_path=None, checkpoint=None, **trainer):
    module = Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(
            accelerator="cpu",
            callbacks=[checkpoint] if checkpoint else [],
            enable_checkpointing=checkpoint is not None,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **({"devices": 1} | trainer),
        ).fit(module, datamodule=datamodule, ckpt_path=ckpt_path)
    return module


def every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


# max_steps and max_epochs are two code paths of Lightning: it loads loader states in one of them
# when an epoch ended with the checkpoint, and not in the other.
@pytest.mark.parametrize(
    "length", [{"max_epochs": EPOCHS}, {"max_epochs": -1, "max_steps": EPOCHS * BATCHES}]
)
@pytest.mark.parametrize("extra", [{}, {"val_check_interval": 2}])
def test_resume_after_any_step(tmp_path, length, extra):
    trainer = {**length, **extra}
    whole = fit(tmp_path, data(tmp_path), checkpoint=every_step(tmp_path / "ckpt"), **trainer)
    assert len(whole.seen) == EPOCHS * BATCHES
    assert len({str(whole.seen[i : i + BATCHES]) for i in range(0, 12, BATCHES)}) == EPOCHS

    for step in range(1, EPOCHS * BATCHES):
        path = tmp_path / "ckpt" / f"step={step}.ckpt"
        torch.load(path, weights_only=True)
        resumed = fit(tmp_path, data(tmp_path), ckpt_path=path, **trainer)
        assert resumed.seen == whole.seen[step:], f"resumed after step {step}"


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_at_the_end_of_an_epoch(tmp_path, workers):
    """torchdata's StatefulDataLoader fails here: it repeats the order of the first epoch."""
    at_end = ModelCheckpoint(tmp_path / "ckpt", filename="{epoch}", save_top_k=-1)
    whole = fit(tmp_path, data(tmp_path), checkpoint=at_end, max_epochs=EPOCHS)
    for epoch in range(EPOCHS - 1):
        path = tmp_path / "ckpt" / f"epoch={epoch}.ckpt"
        datamodule = data(tmp_path, num_workers=workers)
        resumed = fit(tmp_path, datamodule, ckpt_path=path, max_epochs=EPOCHS)
        assert resumed.seen == whole.seen[(epoch + 1) * BATCHES :]


def test_resume_with_other_workers(tmp_path):
    whole = fit(tmp_path, data(tmp_path), max_epochs=2)
    checkpoint = every_step(tmp_path / "ckpt")
    fit(tmp_path, data(tmp_path, num_workers=1), checkpoint=checkpoint, max_steps=2)
    path = tmp_path / "ckpt" / "step=2.ckpt"
    resumed = fit(tmp_path, data(tmp_path), ckpt_path=path, max_epochs=2)
    assert resumed.seen == whole.seen[2:]


def test_resume_when_epochs_are_cut_short(tmp_path):
    limits = {"max_epochs": EPOCHS, "limit_train_batches": 3}
    whole = fit(tmp_path, data(tmp_path), checkpoint=every_step(tmp_path / "ckpt"), **limits)
    assert len(whole.seen) == 3 * EPOCHS
    for step in (2, 3, 4):
        path = tmp_path / "ckpt" / f"step={step}.ckpt"
        resumed = fit(tmp_path, data(tmp_path), ckpt_path=path, **limits)
        assert resumed.seen == whole.seen[step:]


def test_other_data_are_refused(tmp_path):
    fit(tmp_path, data(tmp_path), checkpoint=every_step(tmp_path / "ckpt"), max_steps=2)
    path = tmp_path / "ckpt" / "step=2.ckpt"
    with pytest.raises(CheckpointError, match="the data differ from those of the checkpoint"):
        fit(tmp_path, data(tmp_path, batch_size=2), ckpt_path=path, max_steps=4)


def test_validation_sees_every_document_once(tmp_path):
    module = fit(
        tmp_path,
        data(tmp_path, num_validation_documents=3, validation_batch_size=2),
        max_steps=1,
        limit_train_batches=1,
        num_sanity_val_steps=0,
        precision="bf16-mixed",
    )
    assert module.validated == [(0, 1), (2,)]


def test_a_batch_moves_to_a_device(tmp_path):
    """Lightning does it field by field; nothing of the data module's own is needed."""
    (batch, *_) = data(tmp_path).train_dataloader()
    moved = data(tmp_path).transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved.tokens.device.type == moved.num_tokens.device.type == "meta"
    assert (moved.rows, moved.documents) == (batch.rows, batch.documents)


def test_no_validation_documents(tmp_path):
    module = fit(tmp_path, data(tmp_path, num_validation_documents=0), max_steps=1)
    assert module.validated == []


def test_the_run_s_random_numbers_are_left_alone(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    datamodule = data(tmp_path)
    torch.manual_seed(0)
    for loader in (datamodule.train_dataloader(), datamodule.val_dataloader()):
        list(loader)
    assert torch.equal(torch.rand(3), expected)


def test_overfit_batches_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="overfit_batches cannot be used"):
        fit(tmp_path, data(tmp_path), max_steps=1, overfit_batches=1)


@pytest.mark.distributed
def test_two_ranks_share_the_batches_of_one(tmp_path):
    """With Lightning's own sampler asked for, which must not take over."""
    alone = fit(tmp_path, data(tmp_path), max_epochs=2)
    # In a process of its own: a process that has used CUDA cannot fork.
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True, timeout=120)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for batch, *parts in zip(alone.seen, *(rank["seen"] for rank in ranks), strict=True):
        assert [len(part) for part in parts] == [2, 2]
        assert sorted(map(tuple, parts[0] + parts[1])) == batch
    assert [sorted(a + b) for a, b in zip(*(r["validated"] for r in ranks), strict=True)] == [
        list(rows) for rows in alone.validated
    ]


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    TWO_RANKS = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": True}
    fit(FOLDER, data(FOLDER), max_epochs=2, **TWO_RANKS)
