"""Drawing and updating in one pass over the sequences gives what two passes give. In float64."""

import pytest
import tiny
import torch
from runs import RowsData, assert_same_parameters, module, train
from single_updates import LENGTHS, MODELS, update

from refine_pl.errors import ConfigError
from refine_pl.losses import Reinforce, SequenceRatio
from refine_pl.refine_step import LossWeights
from refine_pl.rollouts import Recompute
from refine_pl.selectors import Entropy, Fixed


def assert_same(policy, batch, **options):
    """Both ways; returns the number of gradients that were compared."""
    (loss, gradients, means), (other_loss, others, other_means) = (
        update(kind, policy, batch, **options) for kind in ("joined", "two_pass")
    )
    torch.testing.assert_close(loss, other_loss, rtol=1e-12, atol=1e-12)
    assert set(gradients) == set(others)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-11, atol=1e-12, msg=name)
    assert means == pytest.approx(other_means, rel=1e-9, abs=1e-12)
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients.values())
    return len(gradients)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_every_backbone(name, tied, checkpointing):
    policy = MODELS[name](tie_word_embeddings=tied, activation_checkpointing=checkpointing)
    batch = tiny.batch(LENGTHS, width=150, padding=3)
    assert assert_same(policy, batch) == len(list(policy.parameters()))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("plan", [(1, 1, 1), (4, 1, 2), (2, 3, 21), (6, 5, 3)])
@pytest.mark.parametrize("microbatch", [1, 3, 4])
def test_plans_and_micro_batches(name, plan, microbatch):
    seed = sum(plan) + microbatch
    batch = tiny.batch(LENGTHS, seed=seed)
    assert_same(MODELS[name](seed=seed), batch, plan=plan, microbatch=microbatch)


@pytest.mark.parametrize("loss", [SequenceRatio(), Reinforce(counts="sequences")])
def test_other_counts_and_positions(loss):
    selector = Fixed(stride=7, min_prefix=5, min_suffix=5)
    assert_same(tiny.delta_net(), tiny.batch(LENGTHS), loss=loss, selector=selector)


def test_a_kl_and_a_frozen_head():
    policy, reference = tiny.delta_net(seed=1), tiny.delta_net(seed=2)
    policy.lm_head.requires_grad_(False)
    options = {"reference": reference, "weights": LossWeights(1.0, 0.7, 0.3)}
    count = assert_same(policy, tiny.batch(LENGTHS), **options)
    assert count == len(list(policy.parameters())) - 1


@pytest.mark.parametrize("weights", [LossWeights(0.0, 1.0, 0.0), LossWeights(2.0, 0.1, 0.0)])
def test_weights(weights):
    assert_same(tiny.delta_net(), tiny.batch(LENGTHS), weights=weights)


def test_rows_without_any_position():
    assert_same(tiny.delta_net(), tiny.batch([12, 9, 140]), microbatch=2)


def test_another_temperature_is_noticed():
    """The broken case: what is compared can differ."""
    policy, batch = tiny.delta_net(), tiny.batch(LENGTHS)
    one = update("joined", policy, batch)
    other = update("two_pass", policy, batch, selector=Entropy(0.01, min_prefix=8, min_suffix=8))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(one[1], other[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rollouts_per", ["batch", "minibatch"])
def test_whole_runs(rollouts_per):
    """Several mini-batches: with ``batch`` only the first one's pass can be shared."""
    models, curves = [], []
    for kind in ("joined", "two_pass"):
        model = module(update=kind, rollouts_per=rollouts_per, minibatch_size=2)
        data = RowsData(batch_size=4, ragged=True)
        curves.append(train(model, data, iterations=3, precision="64-true"))
        models.append(model)
    assert_same_parameters(*models, rtol=1e-9, atol=1e-9)
    for name in ("train/loss", "reward/total/mean", "policy/ratio", "optim/grad_norm"):
        assert curves[0][name] == pytest.approx(curves[1][name], rel=1e-6), name


def test_under_bfloat16_autocast():
    """No weight that was cast without gradients is used where they are needed."""
    moved = []
    for kind in ("joined", "two_pass"):
        model = module(
            update=kind, optimizer=lambda params: torch.optim.SGD(params, 1.0), gradient_clip=1e9
        )
        before = [p.detach().clone() for p in model.policy.parameters()]
        train(model, RowsData(batch_size=2), iterations=1, precision="bf16-mixed")
        moved.append(
            [(p - q).detach() for p, q in zip(model.policy.parameters(), before, strict=True)]
        )
    for one, other in zip(*moved, strict=True):
        assert one.norm() > 0
        assert (one - other).norm() < 0.02 * other.norm()


def test_a_generator_that_reads_again_cannot_join():
    model = module(generator=Recompute(), update="joined")
    with pytest.raises(ConfigError, match=r"update is joined, and Recompute"):
        train(model, RowsData(batch_size=2), iterations=1)
    train(module(generator=Recompute(), update="auto"), RowsData(batch_size=2), iterations=1)


class Fickle(Entropy):
    """Chooses fewer positions than it announces."""

    def select(self, *arguments):
        chosen = super().select(*arguments)
        chosen.valid[:, -1] = False
        return chosen


def test_a_selector_that_announces_other_counts_is_refused():
    options = {"selector": Fickle(min_prefix=8, min_suffix=8), "num_segments": 3}
    with pytest.raises(ConfigError, match="Fickle") as refused:
        train(module(**options), RowsData(batch_size=2), iterations=1)
    assert "two_pass" in str(refused.value)
    train(module(**options, update="two_pass"), RowsData(batch_size=2), iterations=1)
