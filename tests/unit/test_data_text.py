"""TextData: which documents are used, in which order, on which rank, and how it refuses."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
import yaml

import refine_pl.data
from refine_pl.data import BatchOrder, Bytes, Corpus, ResumableLoader, TextData, TokenSequence
from refine_pl.data.loader import collate
from refine_pl.data.text import DocumentSet
from refine_pl.data.token_cache import tokenized
from refine_pl.errors import CheckpointError, ConfigError, DataError


class Own(Corpus):
    def __init__(self, documents: dict[str, str]) -> None:
        self.all = documents

    def read(self):
        yield from self.all.items()


def numbered(count: int, length: int = 24) -> Own:
    """Documents that differ everywhere: number i is spelt with its own letter."""
    return Own(
        {
            f"d{i}": "".join(chr(65 + i) + chr(48 + j) for j in range(length // 2))
            for i in range(count)
        }
    )


@pytest.fixture
def make(tmp_path):
    def build(corpus: Corpus, **changes) -> TextData:
        settings = {"sequence_length": 8, "batch_size": 4, "cache_dir": str(tmp_path)}
        return TextData(corpus, Bytes(), **(settings | changes))

    return build


def texts(loader) -> list[list[str]]:
    return [
        [Bytes().decode(row[:n].tolist()) for row, n in zip(b.tokens, b.num_tokens, strict=True)]
        for b in loader
    ]


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
    data = make(numbered(24), num_validation_documents=4, seed=5)
    assert [n for batch in data.val_dataloader() for n in batch.documents] != before


@pytest.mark.parametrize("crop", ["first", "random"])
def test_documents_that_begin_alike_are_used_once(make, crop):
    corpus = Own({f"s{i}": "same 123" + "x" * i for i in range(6)} | numbered(8).all)
    for seed in range(8):
        data = make(corpus, num_validation_documents=4, seed=seed, crop=crop)
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
        row = DocumentSet(cache, [0], 8, "random").sequence(0, 0, epoch)
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
        "training_tokens_per_epoch": 72,
        "validation_documents": 2,
        "short_documents": 1,
        "duplicate_documents": 1,
        "skipped_rows": 0,
        "left_over_documents_per_epoch": 1,
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


# --- resume ---


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("given", [0, 1, 2, 3])
def test_resume(make, given, workers):
    def loader(num_workers=0):
        return make(numbered(13), crop="random", num_workers=num_workers).train_dataloader()

    whole = loader()
    epochs = [texts(whole) for _ in range(4)]
    stopped = loader(workers)
    assert texts(stopped) == epochs[0]
    assert texts(islice(stopped, given)) == epochs[1][:given]
    state = stopped.state_dict()
    assert {type(value) for value in state.values()} <= {int, str}

    resumed = loader(1 - workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state  # a run that is stopped again at once
    rest = [texts(resumed) for _ in range(2)]
    # After the last batch of an epoch the next thing to come is the next epoch.
    assert rest == ([epochs[1][given:], epochs[2]] if given < 3 else [epochs[2], epochs[3]])


def test_the_epoch_is_settled_when_the_first_batch_is_asked_for(make):
    """Lightning creates the iterator, and says which epoch is meant afterwards."""
    reference = make(numbered(12)).train_dataloader()
    epochs = [texts(reference) for _ in range(4)]
    loader = make(numbered(12)).train_dataloader()
    iterator = iter(loader)
    loader.sampler.set_epoch(2)
    assert texts(iterator) == epochs[2]

    loader.load_state_dict(loader.state_dict() | {"epoch": 1, "batches": 2})
    loader.sampler.set_epoch(3)  # Lightning went on to a later epoch: the place is of no use
    assert texts(loader) == epochs[3]


def test_a_state_of_other_data_is_refused(make):
    state = make(numbered(12)).train_dataloader().state_dict()
    make(numbered(12), num_workers=2).train_dataloader().load_state_dict(state)
    for changed in (
        make(numbered(13)),
        make(numbered(12), batch_size=2),
        make(numbered(12), seed=1),
        make(numbered(12), crop="random"),
        make(numbered(12), num_validation_documents=1),
    ):
        with pytest.raises(CheckpointError, match="the data differ") as caught:
            changed.train_dataloader().load_state_dict(state)
        assert "ranks and num_workers may differ" in str(caught.value)


# --- ranks ---


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_divide_the_same_batches(num_ranks, training):
    def keys(rank, ranks):
        order = BatchOrder(28, 8, 0, rank=rank, num_ranks=ranks, training=training)
        order.set_epoch(3)
        assert len(list(order)) == len(order)
        return list(order)

    whole = keys(0, 1)
    assert len(whole) == (3 if training else 4)
    parts = [keys(rank, num_ranks) for rank in range(num_ranks)]
    for key, *shares in zip(whole, *parts, strict=True):
        assert len({len(share.rows) for share in shares}) == 1
        # Taken in turn, the shares give the batch back: so do the first k rows of each of them.
        pairs = [list(zip(share.rows, share.indices, strict=True)) for share in shares]
        in_turn = [pair for group in zip(*pairs, strict=True) for pair in group]
        assert in_turn == list(zip(key.rows, key.indices, strict=True))


def test_row_numbers(make):
    assert [key.rows for key in BatchOrder(5, 2, 0, training=True)] == [(0, 1), (0, 1)]
    assert [key.rows for key in BatchOrder(5, 2, 0, training=False)] == [(0, 1), (2, 3), (4,)]


def test_a_state_means_the_same_on_other_ranks(make, tmp_path):
    cache = tokenized(numbered(24), Bytes(), tmp_path)
    rows = DocumentSet(cache, range(24), 8)

    def loader(rank, ranks):
        return ResumableLoader(rows, BatchOrder(24, 4, 0, rank=rank, num_ranks=ranks), "same")

    alone = loader(0, 1)
    list(islice(alone, 2))
    two = [loader(rank, 2) for rank in (0, 1)]
    for each in two:
        each.load_state_dict(alone.state_dict())
    rest = [batch.documents for batch in loader(0, 1)][2:]
    for batch, a, b in zip(rest, *two, strict=True):
        assert batch == (a.documents[0], b.documents[0], a.documents[1], b.documents[1])


@pytest.fixture
def ranks(make):
    """A data module that believes to be one of several ranks."""

    def build(num_ranks, first_hash=None, **changes):
        data = make(numbered(12), **changes)
        data.trainer = SimpleNamespace(
            distributed_sampler_kwargs={"rank": num_ranks - 1, "num_replicas": num_ranks},
            strategy=SimpleNamespace(broadcast=lambda value: first_hash or value),
            global_rank=num_ranks - 1,
        )
        return data

    return build


@pytest.mark.parametrize(
    ("name", "settings", "way_out"),
    [
        ("batch_size", {"batch_size": 4}, "batch_size: 6"),
        (
            "num_validation_documents",
            {"batch_size": 3, "num_validation_documents": 4},
            "num_validation_documents: 6",
        ),
        (
            "validation_batch_size",
            {"batch_size": 3, "num_validation_documents": 3, "validation_batch_size": 4},
            "validation_batch_size: 6",
        ),
    ],
)
def test_what_three_ranks_cannot_share(ranks, name, settings, way_out):
    with pytest.raises(ConfigError) as caught:
        ranks(3, **settings).setup()
    message = str(caught.value)
    assert f"{name} 4 cannot be divided by 3 ranks" in message
    assert way_out in message


def test_ranks_with_different_corpora(ranks):
    ranks(2).setup()
    with pytest.raises(DataError, match="rank 1 reads another corpus than rank 0"):
        ranks(2, first_hash="f" * 32).setup()


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
