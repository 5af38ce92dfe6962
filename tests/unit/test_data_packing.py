"""Packs of short documents: which ones, in which order, and how much padding is left."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from itertools import chain, islice

import numpy as np
import pytest
import torch
from text_corpora import Own, text_data, texts

from refine_pl.data.packing import packs_of
from refine_pl.errors import CheckpointError, ConfigError


@pytest.fixture
def make(tmp_path):
    settings = {"min_tokens": 1, "batch_size": 2, "packing": 16}
    return partial(text_data, cache_dir=str(tmp_path), **settings)


def corpus(seed: int = 0, count: int = 30) -> Own:
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return Own(
        {
            f"d{i}": f"{i:02d}" + "".join(rng.choices(letters, k=rng.randint(0, 9)))
            for i in range(count)
        }
    )


def documents(loader) -> list[list[str]]:
    return [[name for pack in batch.packs for name in pack.documents] for batch in loader]


@pytest.mark.parametrize("seed", range(20))
def test_a_pack_is_never_larger_than_its_tokens(seed):
    rng = random.Random(seed)
    tokens = rng.randint(10, 100)
    lengths = np.array([rng.randint(1, tokens) for _ in range(rng.randint(1, 200))])
    packs = packs_of(lengths, tokens, seed)
    assert sorted(np.concatenate(packs).tolist()) == list(range(len(lengths)))
    for pack, following in zip(packs, [*packs[1:], None], strict=True):
        longest = lengths[pack].max()
        assert longest == lengths[pack[0]]
        assert len(pack) * longest <= tokens
        if following is not None:
            assert (len(pack) + 1) * longest > tokens  # another one would not have fitted
            assert lengths[pack].min() >= lengths[following].max()


def test_those_of_one_length_are_mixed():
    lengths = np.full(64, 5)
    packs = [{tuple(sorted(pack)) for pack in packs_of(lengths, 20, seed)} for seed in range(3)]
    assert packs[0] != packs[1] != packs[2]
    assert packs_of(lengths, 20, 1)[0].tolist() == packs_of(lengths, 20, 1)[0].tolist()


def test_an_epoch_has_every_document_once(make):
    source = corpus()
    data = make(source, batch_size=1)
    loader = data.train_dataloader()
    epochs = [documents(loader) for _ in range(3)]
    for epoch in epochs:
        assert Counter(chain(*epoch)) == Counter(source.all.keys())
    assert len({str(epoch) for epoch in epochs}) == 3
    assert len({str(sorted(map(sorted, epoch))) for epoch in epochs}) == 1
    described = data.describe()
    assert described["training_packs_per_epoch"] == len(epochs[0])
    batches = list(data.train_dataloader())
    read = sum(pack.tokens.numel() for batch in batches for pack in batch.packs)
    real = sum(int(batch.num_tokens.sum()) for batch in batches)
    assert real == described["training_tokens_per_epoch"]
    assert described["padding_share"] == round(1 - real / read, 4)


def test_rows_are_documents_with_numbers_of_their_own(make):
    source = corpus()
    (batch, *_) = make(source, batch_size=4).train_dataloader()
    assert len(batch) == 4
    numbers = [number for pack in batch.packs for number in pack.rows]
    assert len(set(numbers)) == len(numbers) > 4
    for pack, rows in zip(batch.packs, texts(batch.packs), strict=True):
        assert pack.tokens.shape[1] == int(pack.num_tokens.max())
        for name, text in zip(pack.documents, rows, strict=True):
            assert text == source.all[name][:8]
    assert batch.to("meta").packs[0].tokens.device.type == "meta"
    assert batch.narrow(1, 3).packs == batch.packs[1:3]
    assert torch.equal(batch.num_tokens, torch.cat([pack.num_tokens for pack in batch.packs]))


@pytest.mark.parametrize("crop", ["first", "random", "all"])
@pytest.mark.parametrize("workers", [0, 1])
def test_resume(make, crop, workers):
    def loader(num_workers=0):
        data = make(corpus(), crop=crop, packing=24, num_workers=num_workers)
        return data.train_dataloader()

    def all_texts(batches):
        return [texts(batch.packs) for batch in batches]

    whole = loader()
    epochs = [all_texts(whole) for _ in range(2)]
    for given in (1, len(epochs[0]) - 1):
        stopped = loader(workers)
        list(islice(stopped, given))
        resumed = loader(1 - workers)
        resumed.load_state_dict(stopped.state_dict())
        assert all_texts(resumed) == epochs[0][given:]
        assert all_texts(resumed) == epochs[1]
    with pytest.raises(CheckpointError, match="the data differ"):
        make(corpus(), crop=crop, packing=16).train_dataloader().load_state_dict(
            stopped.state_dict()
        )


def test_ranks_divide_packs(make):
    whole = list(make(corpus()).train_dataloader())
    parts = []
    for rank in range(2):
        data = make(corpus())
        type(data).ranks = property(lambda self, rank=rank: (rank, 2))
        try:
            parts.append(list(data.train_dataloader()))
        finally:
            del type(data).ranks
    for batch, first, second in zip(whole, *parts, strict=True):
        assert [pack.rows for pack in batch.packs] == [
            pack.rows for share in (first, second) for pack in share.packs
        ]


def test_a_sequence_that_does_not_fit(make):
    with pytest.raises(ConfigError) as caught:
        make(corpus(), packing=7).setup()
    assert "packing is 7, and a sequence has up to 8 tokens" in str(caught.value)
    assert "packing: 8" in str(caught.value)


def test_what_is_said(make, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr("refine_pl.data.text.rank_zero_info", lines.append)
    data = make(Own({"a": "x" * 8, "b": "y" * 4, "c": "z" * 3, "d": "v" * 2}), batch_size=1)
    data.setup("fit")
    assert "2 packs of 4 sequences, padding 22.7% of what is read (46.9% if each" in lines[-1]
    assert "2 batches of 1; 0 packs do not fill another one" in lines[-1]
