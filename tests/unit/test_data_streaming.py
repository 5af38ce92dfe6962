"""Text that is read as a stream: every piece once a pass, and exact places."""

from __future__ import annotations

import json
import random
import warnings
from collections import Counter
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from text_corpora import Own, numbered, texts

from refine_pl.data import Bytes, Files, HubDataset, StageData, StreamedText
from refine_pl.data.corpora import Corpus
from refine_pl.errors import CheckpointError, ConfigError, DataError


def documents(seed: int = 0, count: int = 20) -> dict[str, str]:
    rng = random.Random(seed)
    return {f"d{i}": "".join(rng.choices("abcdefgh", k=rng.randint(1, 30))) for i in range(count)}


def stream(corpus: Corpus, tmp_path: Path, **changes) -> StreamedText:
    settings = {
        "sequence_length": 8,
        "batch_size": 4,
        "min_tokens": 3,
        "shuffle_documents": 6,
        "cache_dir": str(tmp_path / "cache"),
    }
    return StreamedText(corpus, Bytes(), **(settings | changes))


def pieces(found: dict[str, str]) -> list[str]:
    """Every piece of a pass."""
    return [
        text[i : i + 8]
        for text in found.values()
        if len(text) >= 3
        for i in range(0, len(text), 8)
        if len(text) - i > 1
    ]


def rows(loader, number: int) -> list[str]:
    """The first sequences of a stream."""
    found: list[str] = []
    for batch in texts(islice(loader, -(-number // 4))):
        found += batch
    return found[:number]


def saved(kind: str, folder: Path) -> Corpus:
    """One corpus of 20 documents, in several forms."""
    found = documents()
    if kind == "own":
        return Own(found)
    lines = [json.dumps({"text": text}) for text in found.values()]
    (folder / "a.jsonl").write_text("\n".join(lines[:13]))
    (folder / "b.jsonl").write_text("\n".join(lines[13:]))
    if kind == "files":
        return Files(str(folder / "*.jsonl"))
    return HubDataset(str(folder), data_files="*.jsonl", streaming=True)


KINDS = ["own", "files", "hub"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_holds_every_piece_once_and_the_next_another_order(kind, tmp_path):
    expected = pieces(documents())
    loader = stream(saved(kind, tmp_path), tmp_path).train_dataloader()
    size = len(expected)
    read = rows(loader, 3 * size)
    passes = [read[i * size : (i + 1) * size] for i in range(3)]
    assert all(Counter(each) == Counter(expected) for each in passes)
    assert len({str(each) for each in passes}) == 3
    other = stream(saved(kind, tmp_path), tmp_path, seed=1).train_dataloader()
    assert rows(other, size) != passes[0]


@pytest.mark.parametrize("kind", KINDS)
def test_resume_anywhere(kind, tmp_path):
    corpus = saved(kind, tmp_path)
    total = 3 * len(pieces(documents())) // 4  # through two ends of passes
    whole = texts(islice(stream(corpus, tmp_path).train_dataloader(), total + 3))
    given = range(total + 1) if kind == "own" else range(0, total + 1, 5)
    for number in given:
        stopped = stream(corpus, tmp_path).train_dataloader()
        for _ in islice(stopped, number):
            pass
        state = stopped.state_dict()
        assert {type(value) for value in state.values()} <= {int, str}
        resumed = stream(corpus, tmp_path).train_dataloader()
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert texts(islice(resumed, 3)) == whole[number : number + 3]


def test_a_resume_tokenizes_one_block_again_and_no_more(tmp_path, monkeypatch):
    corpus = numbered(60, 24)
    stopped = stream(corpus, tmp_path).train_dataloader()
    for _ in islice(stopped, 30):
        pass
    resumed = stream(corpus, tmp_path).train_dataloader()
    resumed.load_state_dict(stopped.state_dict())
    tokenized = []
    encode = Bytes.encode_batch
    monkeypatch.setattr(
        Bytes, "encode_batch", lambda self, t: tokenized.append(len(t)) or encode(self, t)
    )
    next(iter(resumed))
    assert 1 <= len(tokenized) <= 2
    assert set(tokenized) == {6}


def test_first_pieces_and_short_last_ones(tmp_path):
    found = documents()
    first = stream(Own(found), tmp_path, crop="first").train_dataloader()
    expected = [text[:8] for text in found.values() if len(text) >= 3]
    assert Counter(rows(first, len(expected))) == Counter(expected)
    whole = stream(Own(found), tmp_path, min_last_tokens=8).train_dataloader()
    expected = [p for p in pieces(found) if len(p) == 8]
    expected += [text for text in found.values() if 3 <= len(text) < 8]
    assert Counter(rows(whole, len(expected))) == Counter(expected)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_divide_the_same_batches(num_ranks, tmp_path):
    corpus = Own(documents())
    whole = list(islice(stream(corpus, tmp_path).train_dataloader(), 9))
    shares = []
    for rank in range(num_ranks):
        data = stream(corpus, tmp_path)
        data.trainer = SimpleNamespace(
            distributed_sampler_kwargs={"rank": rank, "num_replicas": num_ranks}
        )
        shares.append(data.train_dataloader())
    for batch, *parts in zip(whole, *(islice(s, 9) for s in shares), strict=True):
        for rank, part in enumerate(parts):
            assert part.rows == batch.rows[rank::num_ranks]
            assert part.documents == batch.documents[rank::num_ranks]
    assert len({str(share.state_dict()) for share in shares}) == 1


def test_validation_has_documents_of_its_own(tmp_path):
    data = stream(Own(documents()), tmp_path, val_corpus=numbered(3, 24), val_crops=2)
    data.prepare_data()
    data.setup("fit")
    (*_, batch) = data.val_dataloader()
    assert batch.documents == ("d2", "d2")
    assert data.describe()["validation_documents"] == 3
    assert stream(Own(documents()), tmp_path).val_dataloader() == []


def test_what_is_refused(tmp_path):
    loader = stream(Own(documents()), tmp_path).train_dataloader()
    for changed in ({"seed": 1}, {"shuffle_documents": 5}, {"crop": "first"}, {"batch_size": 2}):
        other = stream(Own(documents()), tmp_path, **changed).train_dataloader()
        with pytest.raises(CheckpointError, match="the data differ"):
            other.load_state_dict(loader.state_dict())
    short = stream(Own({"a": "xy"}), tmp_path).train_dataloader()
    with pytest.raises(DataError, match="no document of Own has 3 tokens"):
        next(iter(short))
    missing = stream(Files(str(tmp_path / "none/*.txt")), tmp_path).train_dataloader()
    with pytest.raises(DataError, match=r"corpus\.init_args\.paths"):
        next(iter(missing))
    stages = StageData({"text": stream(Own(documents()), tmp_path)})
    stages.set_plan([("text", 3)])
    with pytest.raises(ConfigError, match="the source 'text' is a stream"):
        stages.train_dataloader()


class Seen(LightningModule):
    """Remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[int] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(int(batch.tokens.sum()))
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_resume_of_a_run(tmp_path):
    def fit(**trainer):
        module = Seen()
        checkpoint = ModelCheckpoint(
            tmp_path / "ckpt", filename="{step}", every_n_train_steps=1, save_top_k=-1
        )
        path = trainer.pop("ckpt_path", None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Trainer(
                accelerator="cpu",
                devices=1,
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[checkpoint],
                default_root_dir=tmp_path,
                max_steps=20,
                max_epochs=-1,
            ).fit(module, datamodule=stream(Own(documents()), tmp_path), ckpt_path=path)
        return module.seen

    whole = fit()
    assert len(whole) == 20
    for step in (1, 7, 13):
        torch.load(tmp_path / "ckpt" / f"step={step}.ckpt", weights_only=True)
        assert fit(ckpt_path=tmp_path / "ckpt" / f"step={step}.ckpt") == whole[step:]
