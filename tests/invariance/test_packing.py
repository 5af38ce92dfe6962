"""A document in a pack equals it alone: same loss, gradients and rollouts. In float64."""

import pytest
import tiny
import torch
from single_updates import LENGTHS, MODELS, update

from refine_pl.records import Batch, Packs

SHORT = [33, 31, 29, 30, 12, 9]


def packed(batch: Batch, packs: list[list[int]]) -> Packs:
    """The rows of a batch in packs, each as wide as its longest one."""
    made = []
    for rows in packs:
        index = torch.tensor(rows)
        lengths = batch.num_tokens[index]
        tokens = batch.tokens[index, : int(lengths.max())]
        made.append(Batch(tokens, lengths, tuple(batch.rows[row] for row in rows)))
    return Packs(tuple(made))


def assert_equal_updates(found, expected):
    (loss, gradients, means), (other_loss, others, other_means) = found, expected
    torch.testing.assert_close(loss, other_loss, rtol=1e-12, atol=1e-12)
    assert set(gradients) == set(others)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-10, atol=1e-12, msg=name)
    # Means over groups depend on which rows a pass holds; those over tokens and rollouts do not.
    shared = [name for name in other_means if not name.startswith("time/")]
    assert {n: means[n] for n in shared} == pytest.approx(
        {n: other_means[n] for n in shared}, rel=1e-9, abs=1e-12
    )


@pytest.mark.parametrize("kind", ["joined", "two_pass"])
@pytest.mark.parametrize("name", MODELS)
def test_packed_and_alone(name, kind):
    policy = MODELS[name]()
    batch = tiny.batch(SHORT)
    alone = update(kind, policy, batch, microbatch=1)
    for packs in ([[0, 2, 1, 3], [4, 5]], [[5, 0], [1, 4], [3, 2]], [[0, 1, 2, 3, 4, 5]]):
        assert_equal_updates(update(kind, policy, packed(batch, packs)), alone)


def test_a_pack_of_long_rows_and_one_without_positions():
    policy = tiny.delta_net()
    batch = tiny.batch([*LENGTHS, 5])
    alone = update("joined", policy, batch, microbatch=1)
    assert_equal_updates(update("joined", policy, packed(batch, [[0], [1, 2], [4, 3]])), alone)


def test_a_token_that_crossed_a_border_would_be_noticed():
    """One row that holds two documents is not what packing does."""
    policy = tiny.delta_net()
    batch = tiny.batch([33, 31])
    row = torch.cat([batch.tokens[0, :33], batch.tokens[1, :31]])[None]
    mixed = Packs((Batch(row, torch.tensor([64]), (0,)),))
    loss, *_ = update("two_pass", policy, mixed)
    expected, *_ = update("two_pass", policy, batch, microbatch=1)
    assert abs(float(loss - expected)) > 1e-3
