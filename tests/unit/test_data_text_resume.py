"""TextData: the same batches after a stop and on any number of ranks."""

from __future__ import annotations

from functools import partial
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from text_corpora import numbered, text_data, texts

from refine_pl.data import BatchOrder, Bytes, ResumableLoader
from refine_pl.data.sequences import SequenceSet, beginnings
from refine_pl.data.token_cache import tokenized
from refine_pl.errors import CheckpointError, ConfigError, DataError


@pytest.fixture
def make(tmp_path):
    return partial(text_data, cache_dir=str(tmp_path))


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
    rows = SequenceSet(cache, beginnings(np.arange(24)), 8)

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
