"""Mixtures of corpora: shares, what an epoch leaves for the next one, and places to go on from."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from itertools import islice

import numpy as np
import pytest
import yaml
from text_corpora import Own, text_data, texts

from refine_pl.data import Bytes, Mixture, TextData
from refine_pl.data.mixture import MixedOrder
from refine_pl.errors import CheckpointError, ConfigError


def own(letter: str, count: int, length: int = 8) -> Own:
    rng = random.Random(letter)
    return Own(
        {
            f"d{i}": f"{letter}{i:03d}" + "".join(rng.choices("xyz", k=length - 4))
            for i in range(count)
        }
    )


CORPORA = {"a": own("a", 40), "b": own("b", 30), "c": own("c", 10)}


@pytest.fixture
def make(tmp_path):
    return partial(text_data, cache_dir=str(tmp_path))


def mixture(**weights: float) -> Mixture:
    return Mixture(CORPORA, weights or None)


def names(batches) -> list[str]:
    return [name for batch in batches for name in batch.documents]


@pytest.mark.parametrize("seed", range(30))
def test_shares_and_passes(seed):
    """Whatever the weights: shares are theirs, and each corpus is read pass by pass."""
    rng = random.Random(seed)
    kinds, batch_size = rng.randint(1, 4), rng.randint(1, 4)
    sizes = [rng.randint(4, 40) for _ in range(kinds)]
    weights = [rng.uniform(0.1, 3) for _ in range(kinds)]
    epoch = rng.choice(["shortest", "longest"])
    part = {f"p{i}": own("a", 1) for i in range(kinds)}
    given = Mixture(part, dict(zip(part, weights, strict=True)), epoch)
    parts = np.array([i for i, size in enumerate(sizes) for _ in range(size)])
    rng.shuffle(parts)
    try:
        order = MixedOrder(parts, given, batch_size, seed)
    except ConfigError as error:
        reach = min(s / w for s, w in zip(sizes, weights, strict=True)) * sum(weights)
        if "too small" in str(error):
            assert min(weights) / sum(weights) * reach < 1
        else:
            assert epoch == "shortest"
            assert reach < batch_size
        return
    assert len(order) % batch_size == 0
    total = sum(weights)
    for quota, weight, size in zip(order.quotas, weights, sizes, strict=True):
        assert abs(quota - weight / total * len(order)) < 1
        if epoch == "shortest":
            assert quota <= size
    if epoch == "longest":
        assert any(q >= s - batch_size for q, s in zip(order.quotas, sizes, strict=True))
    read: list[list[int]] = [[] for _ in sizes]
    for number in range(6):
        rows = order(number)
        assert rows == order(number)
        assert Counter(parts[rows].tolist()) == {
            part: quota for part, quota in enumerate(order.quotas.tolist()) if quota
        }
        for row in rows:
            read[parts[row]].append(row)
    for rows, size in zip(read, sizes, strict=True):
        counts = Counter(rows)
        rounds = -(-len(rows) // size)
        # Everything was read before anything was read once more.
        assert set(counts.values()) <= {rounds - 1, rounds}
        assert rounds == 1 or len(counts) == size


def test_without_weights_an_epoch_is_all_documents(make):
    data = make(mixture(), batch_size=1)
    read = names(data.train_dataloader())
    assert Counter(read) == {f"{n}/{d}": 1 for n, corpus in CORPORA.items() for d in corpus.all}


def test_with_weights(make):
    data = make(mixture(a=1, b=2, c=1), batch_size=4)
    loader = data.train_dataloader()
    epochs = [names(loader) for _ in range(4)]
    assert [Counter(name[0] for name in epoch) for epoch in epochs] == [
        {"a": 10, "b": 20, "c": 10}
    ] * 4
    everything = Counter(name for epoch in epochs for name in epoch)
    assert len([name for name in everything if name[0] == "a"]) == 40  # ten in each epoch
    described = data.describe()
    assert described["a_sequences_per_epoch"] == 10
    assert described["b_tokens_per_epoch"] == 160
    assert described["training_tokens_per_epoch"] == 320
    assert described["left_over_sequences_per_epoch"] == 0
    other = make(mixture(a=1, b=2, c=1), batch_size=4, seed=3).train_dataloader()
    assert names(other) != epochs[0]


@pytest.mark.parametrize("packing", [None, 24])
@pytest.mark.parametrize("given", [0, 3, 9, 10])
def test_resume(make, given, packing):
    def loader(workers=0, **weights):
        weights = weights or {"a": 3, "b": 2, "c": 1}
        settings = {"num_workers": workers, "packing": packing, "batch_size": 2}
        return make(mixture(**weights), **settings).train_dataloader()

    def read(batches):
        return [texts(batch.packs) if packing else texts([batch]) for batch in batches]

    whole = loader()
    epochs = [read(whole) for _ in range(3)]
    stopped = loader()
    read(stopped)
    given = min(given, len(stopped))
    read(islice(stopped, given))
    resumed = loader(1)
    resumed.load_state_dict(stopped.state_dict())
    assert read(resumed) == (epochs[1][given:] if given < len(stopped) else epochs[2])
    with pytest.raises(CheckpointError, match="the data differ"):
        loader(a=1, b=1, c=3).load_state_dict(stopped.state_dict())


def test_packs_hold_documents_of_one_corpus(make):
    data = make(mixture(a=1, b=1, c=1), packing=24, batch_size=1)
    packs = [pack for batch in data.train_dataloader() for pack in batch.packs]
    assert Counter(pack.documents[0][0] for pack in packs) == {"a": 4, "b": 4, "c": 4}
    assert all(len({name[0] for name in pack.documents}) == 1 for pack in packs)


def test_other_weights_read_the_same_tokens(make, tmp_path):
    for weights in ({"a": 1, "b": 2, "c": 1}, {"a": 2, "b": 1, "c": 1}, {}):
        make(mixture(**weights)).setup()
    assert len(list((tmp_path / "tokens").glob("*.json"))) == 1


def test_held_out_documents_are_of_all_corpora(make):
    data = make(mixture(a=1, b=1, c=1), num_validation_documents=40)
    held_out = names(data.val_dataloader())
    assert {name[0] for name in held_out} == {"a", "b", "c"}
    assert not set(held_out) & set(names(data.train_dataloader()))


def test_what_is_said(make, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr("refine_pl.data.text.rank_zero_info", lines.append)
    make(mixture(a=1, b=2, c=1)).setup("fit")
    for part in (
        "Mixture of a: Own, b: Own, c: Own",
        "  b: 20 documents of an epoch, about 160 tokens (50.0%)",
        "an epoch: 10 batches of 4; 0 documents do not fill",
    ):
        assert part in lines[-1]


@pytest.mark.parametrize(
    ("corpora", "weights", "what"),
    [
        ({}, None, "a mixture has no corpora"),
        ({"a/b": CORPORA["a"]}, None, "a corpus is named 'a/b'"),
        (CORPORA, {"a": 1, "b": 1}, "the corpus 'c' has no weight"),
        (CORPORA, {"a": 1, "b": 1, "c": 1, "d": 1}, "'d' is not a corpus"),
    ],
)
def test_what_is_refused(corpora, weights, what):
    with pytest.raises(ConfigError) as caught:
        Mixture(corpora, weights)
    assert what in str(caught.value)


def test_a_corpus_with_nothing_to_train_on_and_a_batch_that_is_too_large(make):
    corpora = CORPORA | {"short": own("s", 3, 4)}
    with pytest.raises(ConfigError, match="no document of the corpus 'short' is left"):
        make(Mixture(corpora, dict.fromkeys(corpora, 1.0))).setup()
    with pytest.raises(ConfigError, match="batch_size 32 is more than the 10 rows of an epoch"):
        make(mixture(a=0.001, b=0.001, c=1), batch_size=32).setup()
    longest = Mixture(CORPORA, {"a": 0.5, "b": 0.3, "c": 0.2}, "longest")
    assert len(make(longest, batch_size=32).train_dataloader()) == 3


def test_yaml():
    from jsonargparse import ArgumentParser

    settings = yaml.safe_load("""
corpus:
  class_path: refine_pl.data.Mixture
  init_args:
    corpora:
      code: {class_path: refine_pl.data.StandardLibrary}
      books: {class_path: refine_pl.data.Files, init_args: {paths: "*.txt"}}
    weights: {code: 0.7, books: 0.3}
tokenizer: {class_path: refine_pl.data.Bytes}
sequence_length: 64
batch_size: 2
""")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TextData, "data")
    data = parser.instantiate(parser.parse_object({"data": settings})).data
    assert isinstance(data.corpus, Mixture)
    assert data.corpus.weights == {"code": 0.7, "books": 0.3}
    assert isinstance(data.tokenizer, Bytes)
