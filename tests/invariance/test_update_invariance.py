"""How a batch is cut, padded or computed does not change what is learned. In float64."""

import pytest
import torch
from runs import RowsData, assert_same_parameters, backbone, module, train

from refine_pl.rewards import EmbeddingSimilarity, ExactMatch, LogLikelihood
from refine_pl.rollouts import Forked, Recompute
from refine_pl.training.module import RefineModule

REWARDS = ("reward/total/mean", "reward/total/std", "advantage/magnitude", "policy/ratio")


def run(data=None, iterations=3, policy=None, **options):
    """A run, its parameters and its curve; float64, so that only rounding can differ."""
    settings = {"minibatch_size": 4, "microbatch_size": 4, "rollouts_per_position": 3}
    rewards = {"s": EmbeddingSimilarity(), "m": ExactMatch(), "l": LogLikelihood(weight=0.1)}
    model = module(policy or backbone(), rewards=rewards, **settings | options)
    data = data or RowsData(batch_size=4, ragged=True)
    return model, train(model, data, iterations=iterations, precision="64-true")


def assert_same_run(one, other):
    (model, curve), (other_model, other_curve) = one, other
    for name in ("train/loss", "train/ntp_loss", "optim/grad_norm", *REWARDS):
        assert curve[name] == pytest.approx(other_curve[name], rel=1e-6, abs=1e-9), name
    # Rewards are float32 by contract, and Adam's first steps divide gradients by their size: a
    # ten-thousandth of a step (1e-2) is rounding.
    assert_same_parameters(model, other_model, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def whole():
    return run()


@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches(whole, size):
    assert_same_run(run(microbatch_size=size), whole)


def test_micro_batches_of_mini_batches():
    assert_same_run(
        run(minibatch_size=2, microbatch_size=1), run(minibatch_size=2, microbatch_size=2)
    )


def test_one_mini_batch_is_the_same_drawn_for_the_batch_or_for_itself(whole):
    assert_same_run(run(rollouts_per="minibatch"), whole)


def test_mini_batches_drawn_for_the_batch_differ_from_drawn_for_each():
    """The counter-example: this test can fail."""
    options = {"minibatch_size": 2, "microbatch_size": 2}
    one, other = run(**options), run(rollouts_per="minibatch", **options)
    with pytest.raises(AssertionError):
        assert_same_run(one, other)


class Padded(RowsData):
    """The same rows, and more padding of any kind behind them."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        wide = torch.nn.functional.pad(batch.tokens, (0, 13), value=5)
        behind = torch.arange(wide.shape[1]) >= batch.num_tokens[:, None]
        batch.tokens = wide.masked_fill(behind, 5)
        return batch


def test_the_width_and_the_content_of_padding(whole):
    assert_same_run(run(Padded(batch_size=4, ragged=True)), whole)


@pytest.mark.parametrize("use_cache", [True, False])
def test_forked_and_recomputed_rollouts(whole, use_cache):
    assert_same_run(run(generator=Recompute(use_cache=use_cache)), whole)


def test_activation_checkpointing(whole):
    assert_same_run(run(policy=backbone(activation_checkpointing=True)), whole)


def test_a_prefill_that_is_given_is_not_made_again():
    calls = []

    class Spy(Forked):
        def generate(self, policy, prefill, *args):
            calls.append(prefill)
            return super().generate(policy, prefill, *args)

    model = module(generator=Spy())
    train(model, iterations=1)
    assert isinstance(model, RefineModule)
    assert len({id(prefill) for prefill in calls}) == len(calls) == 3
