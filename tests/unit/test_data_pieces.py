"""TextData: whole documents in pieces, and what validation reads."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from itertools import islice

import numpy as np
import pytest
from text_corpora import Own, numbered, text_data, texts

from refine_pl.data.sequences import spread, whole_documents
from refine_pl.errors import CheckpointError, ConfigError


@pytest.fixture
def make(tmp_path):
    return partial(text_data, cache_dir=str(tmp_path))


def letters(count: int, seed: int) -> str:
    return "".join(random.Random(seed).choices("abcdefghijklmnopqrstuvwxyz", k=count))


def names(loader) -> list[str]:
    return [name for batch in loader for name in batch.documents]


MIXED = Own({f"d{i}": letters(length, i) for i, length in enumerate([5, 8, 9, 16, 23, 24, 31])})
"""Documents of less than a sequence, of whole numbers of them, and of some tokens more."""


# --- pieces of whole documents ---


@pytest.mark.parametrize("seed", range(20))
def test_pieces_hold_every_token_once(seed):
    rng = random.Random(seed)
    size, least = rng.randint(1, 9), rng.randint(1, 9)
    lengths = np.array([rng.randint(1, 40) for _ in range(rng.randint(1, 12))])
    documents = np.array(rng.sample(range(100), len(lengths)))
    pieces = whole_documents(documents, lengths, size, least)
    assert pieces.documents.tolist() == sorted(
        pieces.documents.tolist(), key=documents.tolist().index
    )
    for document, length in zip(documents, lengths, strict=True):
        starts = pieces.starts[pieces.documents == document].tolist()
        last = length % size
        kept = length - last if 0 < last < least and length > size else length
        assert starts == list(range(0, kept, size))


@pytest.mark.parametrize("seed", range(10))
def test_spread_pieces_reach_from_the_beginning_to_the_end(seed):
    rng = random.Random(seed)
    size, number = rng.randint(1, 9), rng.randint(2, 5)
    lengths = np.array([rng.randint(1, 60) for _ in range(6)])
    starts = spread(np.arange(6), lengths, size, number).starts.reshape(6, number)
    assert (starts[:, 0] == 0).all()
    assert (starts[:, -1] == np.maximum(lengths - size, 0)).all()
    steps = np.diff(starts, axis=1)
    assert (steps.max(1) - steps.min(1) <= 1).all()
    assert (steps[lengths >= number * size] >= size).all()
    assert spread(np.arange(6), lengths, size, 1).starts.tolist() == [0] * 6


def test_an_epoch_holds_every_piece_of_every_document(make):
    data = make(MIXED, crop="all", min_tokens=1, batch_size=1)
    loader = data.train_dataloader()
    expected = Counter(
        text[i : i + 8]
        for text in MIXED.all.values()
        for i in range(0, len(text), 8)
        if len(text) - i > 1
    )
    assert sum(expected.values()) == 15  # the single token at the end of d2 is left out
    epochs = [texts(loader) for _ in range(3)]
    assert len({str(epoch) for epoch in epochs}) == 3
    for epoch in epochs:
        assert Counter(row for (row,) in epoch) == expected
    described = data.describe()
    assert described["training_documents"] == 7
    assert described["training_sequences_per_epoch"] == 15
    assert described["training_tokens_per_epoch"] == sum(map(len, MIXED.all.values())) - 1


def test_a_piece_has_the_name_of_its_document(make):
    batches = list(make(MIXED, crop="all", min_tokens=1).train_dataloader())
    rows = [row for batch in texts(batches) for row in batch]
    assert len(rows) == 12  # of 15, in batches of 4
    for name, text in zip(names(batches), rows, strict=True):
        assert text in MIXED.all[name]


def test_short_last_pieces(make):
    def pieces(least):
        data = make(MIXED, crop="all", min_tokens=1, min_last_tokens=least, batch_size=1)
        return sorted(len(row) for (row,) in texts(data.train_dataloader()))

    assert pieces(1) == [1, 5, 7, 7] + [8] * 12
    assert pieces(7) == [5, 7, 7] + [8] * 12
    assert pieces(8) == [5] + [8] * 12  # a document's only piece stays


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("given", [0, 1, 2, 3])
def test_resume_in_the_middle_of_an_epoch_of_pieces(make, given, workers):
    def loader(num_workers=0):
        settings = {"crop": "all", "min_tokens": 1, "num_workers": num_workers}
        return make(MIXED, **settings).train_dataloader()

    whole = loader()
    epochs = [texts(whole) for _ in range(3)]
    stopped = loader(workers)
    assert texts(stopped) == epochs[0]
    list(islice(stopped, given))
    resumed = loader(1 - workers)
    resumed.load_state_dict(stopped.state_dict())
    assert texts(resumed) == (epochs[1][given:] if given < 3 else epochs[2])


def test_a_place_among_other_pieces_is_refused(make):
    settings = {"crop": "all", "min_tokens": 1}
    state = make(MIXED, **settings).train_dataloader().state_dict()
    for changed in ({"crop": "first"}, {"min_last_tokens": 8}, {"min_tokens": 6}):
        with pytest.raises(CheckpointError, match="the data differ"):
            make(MIXED, **(settings | changed)).train_dataloader().load_state_dict(state)


def test_documents_that_begin_alike_are_read_whole_but_copies_are_not(make):
    same = letters(8, 99)
    corpus = Own(
        {"a": same + letters(8, 1), "b": same + letters(8, 2), "copy": same + letters(8, 1)}
        | {f"d{i}": letters(16, i + 10) for i in range(4)}
    )
    for seed in range(12):
        data = make(corpus, crop="all", split_seed=seed, num_validation_documents=1, batch_size=1)
        (held_out,) = names(data.val_dataloader())
        trained = names(data.train_dataloader())
        alike = {"a", "b", "copy"}
        left = set(corpus.all) - (alike if held_out in alike else {held_out, "copy"})
        assert Counter(trained) == dict.fromkeys(left, 2)


# --- validation ---


def test_the_seed_of_the_order_does_not_move_held_out_documents(make):
    corpus = numbered(24)

    def held_out(**seeds):
        return names(make(corpus, num_validation_documents=4, **seeds).val_dataloader())

    assert len({tuple(held_out(seed=seed)) for seed in range(6)}) == 1
    assert len({tuple(held_out(split_seed=seed)) for seed in range(6)}) > 3


def test_several_crops_of_a_held_out_document(make):
    corpus = Own({f"d{i}": letters(40, i) for i in range(6)})
    data = make(corpus, num_validation_documents=2, val_crops=3, validation_batch_size=2)
    loader = data.val_dataloader()
    rows = [row for batch in texts(loader) for row in batch]
    documents = names(loader)
    assert [documents.count(name) for name in dict.fromkeys(documents)] == [3, 3]
    assert rows == [
        corpus.all[name][start : start + 8]
        for name in dict.fromkeys(documents)
        for start in (0, 16, 32)
    ]
    assert [n for batch in loader for n in batch.rows] == list(range(6))


def test_a_validation_corpus(make):
    corpus = numbered(10)
    own = Own({"new": letters(24, 7), "known": corpus.all["d3"], "short": "x"})
    data = make(corpus, val_corpus=own, batch_size=1)
    assert names(data.val_dataloader()) == ["new", "known"]
    assert sorted(names(data.train_dataloader())) == sorted(set(corpus.all) - {"d3"})
    described = data.describe()
    assert described["validation_documents"] == 2
    assert described["duplicate_documents"] == 1
    assert described["validation_corpus_hash"] == own.content_hash()[:12]
    seen = {
        tuple(
            names(
                make(
                    corpus, val_corpus=own, num_validation_documents=1, split_seed=s
                ).val_dataloader()
            )
        )
        for s in range(8)
    }
    assert seen == {("new",), ("known",)}


def test_a_validation_corpus_that_cannot_be_used(make):
    corpus = numbered(6)
    with pytest.raises(ConfigError) as caught:
        make(corpus, val_corpus=numbered(3), num_validation_documents=4).setup()
    assert "num_validation_documents 4 is more than val_corpus has" in str(caught.value)
    assert "num_validation_documents: 3" in str(caught.value)
    with pytest.raises(ConfigError, match="every document is held out") as caught:
        make(corpus, val_corpus=corpus).setup()
    assert "a val_corpus of other documents" in str(caught.value)


def test_what_is_said_of_pieces_and_of_a_validation_corpus(make, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr("refine_pl.data.text.rank_zero_info", lines.append)
    make(MIXED, crop="all", min_tokens=1, val_corpus=numbered(2)).setup("fit")
    for part in (
        "Validation: Own (hash ",
        "7 for training, 2 for validation",
        "15 pieces of up to 8 tokens hold 115 of their 116 tokens",
        "3 batches of 4; 3 pieces of documents do not fill another one",
    ):
        assert part in lines[-1]
