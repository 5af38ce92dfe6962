"""TextData: which documents are used, in which order, and how it refuses."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from text_corpora import Own, numbered, text_data, texts

import refine_pl.data
from refine_pl.data import Bytes, TextData, TokenSequence
from refine_pl.data.loader import collate
from refine_pl.data.sequences import SequenceSet, beginnings
from refine_pl.data.token_cache import tokenized
from refine_pl.errors import ConfigError, DataError


@pytest.fixture
def make(tmp_path):
    return partial(text_data, cache_dir=str(tmp_path))


# --- batches ---


def test_rows_are_padded_on_the_right():
    rows = [TokenSequence(torch.arange(1, 4), 7, "a"), TokenSequence(torch.arange(1, 2), 3, "b")]
    batch = collate(rows, pad_token_id=9)
    assert batch.tokens.tolist() == [[1, 2, 3], [1, 9, 9]]
    assert batch.tokens.dtype == batch.num_tokens.dtype == torch.int64
    assert batch.num_tokens.tolist() == [3, 1]
    assert (batch.rows, batch.documents) == ((7, 3), ("a", "b"))


def test_a_batch(make):
    corpus = Own({"long": "abcdefghij", "short": "xyz", "even": "klmnopqr", "tiny": "u"})
    data = make(corpus, batch_size=3, min_tokens=2)
    (batch,) = data.train_dataloader()
    order = sorted(range(3), key=lambda i: batch.documents[i])
    assert batch.rows == (0, 1, 2)
    assert [batch.documents[i] for i in order] == ["even", "long", "short"]
    assert [batch.num_tokens[i].item() for i in order] == [8, 8, 3]
    assert batch.tokens.shape == (3, 8)
    assert Bytes().decode(batch.tokens[order[1]].tolist()) == "abcdefgh"


def test_an_epoch_has_every_document_once_and_the_next_another_order(make):
    loader = make(numbered(10)).train_dataloader()
    assert len(loader) == 2
    epochs = [[name for batch in loader for name in batch.documents] for _ in range(3)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    again = make(numbered(10)).train_dataloader()
    assert [[name for batch in again for name in batch.documents] for _ in range(3)] == epochs
    other = make(numbered(10), seed=1).train_dataloader()
    assert [name for batch in other for name in batch.documents] != epochs[0]


def test_workers_change_nothing(make):
    alone = texts(make(numbered(12), crop="random").train_dataloader())
    assert texts(make(numbered(12), crop="random", num_workers=2).train_dataloader()) == alone


# --- which documents ---


def test_validation_is_apart_and_stays_when_documents_are_added(make):
    def sides(count):
        data = make(numbered(count), num_validation_documents=4)
        train = {name for batch in data.train_dataloader() for name in batch.documents}
        validation = [name for batch in data.val_dataloader() for name in batch.documents]
        assert len(validation) == len(set(validation)) == 4
        assert not train & set(validation)
        return validation

    before, after = sides(24), sides(25)
    assert len(set(before) & set(after)) >= 3
    data = make(numbered(24), num_validation_documents=4, split_seed=5)
    assert [n for batch in data.val_dataloader() for n in batch.documents] != before


@pytest.mark.parametrize("crop", ["first", "random"])
def test_documents_that_begin_alike_are_used_once(make, crop):
    corpus = Own({f"s{i}": "same 123" + "x" * i for i in range(6)} | numbered(8).all)
    for seed in range(8):
        data = make(corpus, num_validation_documents=4, split_seed=seed, crop=crop)
        assert data.describe()["duplicate_documents"] == 5
        names = [
            name
            for loader in (data.train_dataloader(), data.val_dataloader())
            for batch in loader
            for name in batch.documents
        ]
        assert len(names) == len(set(names)) == 8  # 5 for training, of which 4 fill a batch
        assert not {f"s{i}" for i in range(1, 6)} & set(names)  # the first one stays


def test_random_crops_depend_on_seed_epoch_and_document_only(make, tmp_path):
    corpus = numbered(6, length=40)
    first = texts(make(corpus, crop="first", batch_size=6).train_dataloader())[0]
    loader = make(corpus, crop="random", batch_size=6).train_dataloader()
    epochs = [sorted(texts(loader)[0]) for _ in range(3)]
    assert len({tuple(rows) for rows in epochs}) == 3
    assert epochs[0] != sorted(first)
    assert all(len(row) == 8 and row in "".join(corpus.all.values()) for row in epochs[0])
    alone = make(corpus, crop="random", batch_size=1).train_dataloader()
    assert sorted(row for batch in texts(alone) for row in batch) == epochs[0]
    cache = tokenized(corpus, Bytes(), tmp_path)
    starts = set()
    for epoch in range(200):
        row = SequenceSet(cache, beginnings(np.array([0])), 8, random_seed=0).sequence(0, 0, epoch)
        starts.add(Bytes().decode(row.tokens.tolist()))
    assert len(starts) == 40 - 8 + 1  # the first and the last start are both possible


def test_validation_is_never_cropped_at_random(make):
    data = make(numbered(8, length=40), crop="random", num_validation_documents=2)
    rows = [row for batch in texts(data.val_dataloader()) for row in batch]
    assert all(row[1] == "0" for row in rows)
    assert texts(data.val_dataloader()) == texts(data.val_dataloader())


def test_longer_documents_can_be_asked_for(make):
    corpus = Own(numbered(6, length=24).all | {f"s{i}": f"{i}" * 12 for i in range(6)})
    data = make(corpus, min_tokens=20)
    assert data.describe()["short_documents"] == 6
    assert {name[0] for batch in data.train_dataloader() for name in batch.documents} == {"d"}


def test_describe(make):
    corpus = Own(numbered(11).all | {"short": "x", "copy": numbered(1).all["d0"]})
    described = make(corpus, num_validation_documents=2).describe()
    assert described == {
        "corpus": "Own",
        "corpus_hash": corpus.content_hash()[:12],
        "tokenizer": "Bytes",
        "documents": 13,
        "tokens": 12 * 24 + 1,
        "training_documents": 9,
        "training_sequences_per_epoch": 9,
        "training_tokens_per_epoch": 72,
        "validation_documents": 2,
        "short_documents": 1,
        "duplicate_documents": 1,
        "skipped_rows": 0,
        "left_over_sequences_per_epoch": 1,
    }
    assert all(type(value) in (str, int, float) for value in described.values())


def test_what_is_logged(make, monkeypatch):
    class Skipping(Own):
        on_bad_row = "skip"

        def read(self):
            self.bad_row("broken", where="a.jsonl, line 7")
            yield from super().read()

    lines: list[str] = []
    monkeypatch.setattr("refine_pl.data.text.rank_zero_info", lines.append)
    for _ in range(2):
        data = make(Skipping(numbered(10).all | {"short": "x"}), num_validation_documents=1)
        data.prepare_data()
        data.setup("fit")
        data.setup("validate")
    assert [line.split()[0] for line in lines] == ["Tokenizing", "Data:", "Data:"]
    for part in (
        "11 documents, 241 tokens by Bytes",
        "9 for training, 1 for validation; left out: 1 shorter than 8 tokens, 0 duplicates",
        "2 batches of 4; 1 documents do not fill another one",
        "skipped rows: 1; the first was a.jsonl, line 7: broken",
    ):
        assert part in lines[2]


# --- what is refused ---


def test_all_documents_too_short(make):
    with pytest.raises(DataError) as caught:
        make(Own({"a": "xxx", "b": "xxxxx"})).setup()
    message = str(caught.value)
    assert "all 2 documents are shorter than 8 tokens" in message
    assert "the longest one, b, has 5 tokens" in message
    assert "set min_tokens (and sequence_length) to 5 or less" in message


def test_batch_larger_than_the_training_documents(make):
    corpus = Own(numbered(5).all | {"short": "x", "copy": numbered(1).all["d0"]})
    with pytest.raises(ConfigError) as caught:
        make(corpus, batch_size=8, num_validation_documents=1).setup()
    message = str(caught.value)
    assert "batch_size 8 is more than the 4 training documents" in message
    assert "7 documents, of which 1 are shorter than 8 tokens, 1 are duplicates" in message
    assert "at most 4" in message


@pytest.mark.parametrize("wanted", [12, 13])
def test_validation_takes_everything(make, wanted):
    with pytest.raises(ConfigError) as caught:
        make(numbered(12), num_validation_documents=wanted).setup()
    message = str(caught.value)
    assert f"num_validation_documents {wanted} leaves no training document" in message
    assert "at most 11" in message


# --- on the command line ---

YAML = """
corpus: {class_path: refine_pl.data.Files, init_args: {paths: [a.txt, "b/*.jsonl"]}}
tokenizer: {class_path: refine_pl.data.Bytes}
sequence_length: 512
batch_size: 32
crop: random
num_validation_documents: 8
"""


def parser():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TextData, "data")
    return parser


@pytest.mark.parametrize("paths", [["a.txt", "b/*.jsonl"], "a.txt"])
def test_yaml(paths):
    settings = yaml.safe_load(YAML)
    settings["corpus"]["init_args"]["paths"] = paths
    data = parser().instantiate(parser().parse_object({"data": settings})).data
    assert isinstance(data.corpus, refine_pl.data.Files)
    assert data.corpus.paths == (paths if isinstance(paths, list) else [paths])
    assert isinstance(data.tokenizer, Bytes)
    assert data.min_tokens == 512


@pytest.mark.parametrize(
    ("key", "value"), [("batch_size", 0), ("num_workers", -1), ("crop", "last"), ("tokenizer", 3)]
)
def test_yaml_that_is_refused(key, value):
    from jsonargparse import ArgumentError

    settings = yaml.safe_load(YAML) | {key: value}
    with pytest.raises(ArgumentError, match=f"data.{key}"):
        parser().parse_object({"data": settings})


def test_corpora_and_tokenizers_load_nothing_heavy():
    """And every name of the package exists."""
    code = (
        "import sys\n"
        "from refine_pl.data import Bytes, Corpus, Files, HubDataset, HubTokenizer\n"
        "from refine_pl.data import StandardLibrary, Tokenizer\n"
        "heavy = {'lightning', 'transformers', 'datasets', 'pyarrow', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert all(getattr(refine_pl.data, name).__name__ == name for name in refine_pl.data.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = refine_pl.data.Nothing
