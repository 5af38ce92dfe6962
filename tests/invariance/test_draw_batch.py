"""How many sequences rollouts are drawn for at once changes nothing. In float64."""

from dataclasses import fields

import pytest
import tiny
import torch
from runs import RowsData, module, train
from single_updates import LENGTHS, MODELS, WEIGHTS, update

from refine_pl.records import Experience, Packs, RolloutPlan, Rollouts
from refine_pl.refine_step import RefineStep
from refine_pl.rewards import ExactMatch
from refine_pl.rewards.weighted_sum import WeightedSum
from refine_pl.rollouts import Forked, Recompute
from refine_pl.selectors import Entropy
from refine_pl.stopwatch import Stopwatch
from refine_pl.training.settings import Settings
from refine_pl.training.sizes import Sizes
from refine_pl.training.updater import Updater


def assert_same(one, other):
    (loss, gradients, means), (other_loss, others, other_means) = one, other
    torch.testing.assert_close(loss, other_loss, rtol=1e-12, atol=1e-12)
    assert means == pytest.approx(other_means, rel=1e-9, abs=1e-12)
    assert set(gradients) == set(others)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-11, atol=1e-12, msg=name)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_every_backbone(name, checkpointing):
    policy = MODELS[name](activation_checkpointing=checkpointing)
    batch = tiny.batch([*LENGTHS, 61], width=150)
    alone, *others = (
        update("two_pass", policy, batch, microbatch=1, draw_batch=size)
        for size in (1, 2, 5, "auto")
    )
    for other in others:
        assert_same(other, alone)


def test_another_number_of_positions_is_noticed():
    """The broken case: what is compared can differ."""
    policy, batch = tiny.delta_net(), tiny.batch(LENGTHS)
    with pytest.raises(AssertionError):
        assert_same(*(update("two_pass", policy, batch, plan=(n, 2, 4)) for n in (2, 3)))


class Counting(Forked):
    """Says how many sequences it drew for at once."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def generate(self, policy, prefill, batch, *others):
        self.rows.append(len(batch))
        return super().generate(policy, prefill, batch, *others)


def updater(policy, generator, **sizes):
    step = RefineStep(Entropy(min_prefix=8, min_suffix=8), generator)
    sgd = torch.optim.SGD(policy.parameters(), 0.0)
    return Updater(policy, step, sgd, Sizes(None, 2, "batch", "two_pass", **sizes))


@pytest.mark.parametrize(
    ("draw_batch", "checkpointing", "together"),
    [("auto", False, [8, 2]), ("auto", True, [4, 4, 2]), (2, False, [2] * 5), (6, True, [6, 4])],
)
def test_sequences_at_once(draw_batch, checkpointing, together):
    policy, generator = tiny.delta_net(activation_checkpointing=checkpointing), Counting()
    settings = Settings(RolloutPlan(2, 1, 3), WEIGHTS)
    batch = tiny.batch([40 + i for i in range(10)])
    drawn = updater(policy, generator, draw_batch=draw_batch).draw(batch, settings)
    assert generator.rows == together
    assert [len(experience.batch) for experience in drawn] == [2] * 5
    for number, experience in enumerate(drawn):
        assert isinstance(experience, Experience)
        assert experience.batch.rows == batch.rows[2 * number : 2 * number + 2]
        assert experience.advantages.shape[0] == len(experience.rollouts.tokens) == 2


def test_packs_and_prefixes_that_are_read_again_stay_apart():
    settings, policy = Settings(RolloutPlan(2, 1, 3), WEIGHTS), tiny.delta_net()
    packs = Packs((tiny.batch([50, 44, 41]), tiny.batch([120])))
    generator = Counting()
    drawn = updater(policy, generator, draw_batch=4).draw(packs, settings)
    assert generator.rows == [3, 1] == [len(experience.batch) for experience in drawn]
    again = updater(policy, Recompute())
    assert again.sizes.drawn_at_once(policy, again.step.generator) == 2


class Ranks(ExactMatch):
    """Looks across the rows that it is shown."""

    def score(self, rollouts):
        first = rollouts.tokens[..., 0].float()
        return (first - first.mean()).clamp(-1, 1)


def test_rewards_are_shown_micro_batches():
    policy, batch, found = tiny.delta_net(), tiny.batch(LENGTHS), []
    for size in (2, 4):
        one = updater(policy, Forked(), draw_batch=size)
        one.step.reward = WeightedSum({"ranks": Ranks()})
        found.append(one.draw(batch, Settings(RolloutPlan(3, 2, 4), WEIGHTS)))
    for one, other in zip(*found, strict=True):
        assert one.rewards.std() > 0
        assert torch.equal(one.rewards, other.rewards)


def test_what_was_drawn_is_cut_in_all_its_parts():
    policy, plan = tiny.delta_net(), RolloutPlan(3, 2, 4)
    step = updater(policy, Forked()).step
    whole = step.roll(policy, tiny.batch(LENGTHS), plan, None, Stopwatch(enabled=False))
    part = whole.narrow(1, 3)
    assert len(part) == 2
    assert part.batch.rows == whole.batch.rows[1:3]
    assert torch.equal(part.entropy, whole.entropy[1:3])
    names = [f.name for f in fields(Rollouts) if f.name != "positions"]
    assert len(names) == 6
    for name in (*names, "valid"):
        assert torch.equal(getattr(part.rollouts, name), getattr(whole.rollouts, name)[1:3])
    assert torch.equal(part.rollouts.positions.index, whole.rollouts.positions.index[1:3])


def test_a_run_with_each_size():
    """Through the module's own setting."""
    curves = [
        train(module(draw_batch=size), RowsData(batch_size=4, ragged=True), iterations=2)
        for size in (1, 2)
    ]
    for name in ("train/loss", "reward/total/mean", "policy/ratio", "optim/grad_norm"):
        assert curves[0][name] == pytest.approx(curves[1][name], rel=1e-5), name
