"""The gradient of the whole update, forked against recomputed, and against plain autograd."""

import pytest
import tiny
import torch

from refine_pl.advantages import GroupRelative
from refine_pl.losses import (
    ClippedPolicy,
    ClippedWeights,
    Reinforce,
    SequenceRatio,
    ntp_targets,
)
from refine_pl.records import RolloutPlan
from refine_pl.refine_step import Counts, LossWeights, RefineStep
from refine_pl.rewards import EmbeddingSimilarity, ExactMatch
from refine_pl.rollouts import Forked, Recompute
from refine_pl.selectors import Entropy
from refine_pl.stopwatch import Stopwatch

LOSSES = [ClippedPolicy(), SequenceRatio(), ClippedWeights(), Reinforce(counts="sequences")]
WEIGHTS = LossWeights(ntp_weight=1.0, policy_weight=0.7, kl_weight=0.3)


def make_step(generator, min_prefix=20):
    rewards = {"similarity": EmbeddingSimilarity(), "match": ExactMatch()}
    selector = Entropy(min_prefix=min_prefix, min_suffix=6)
    return RefineStep(selector, generator, rewards, GroupRelative(), ClippedPolicy())


def update(step, policy, batch, plan, experience=None, reference=None):
    """Experience, loss, sums and gradients of one update."""
    if experience is None:
        randomness = tiny.RowRandom(3, 0, batch.rows)
        experience = step.draw(policy, batch, plan, randomness, Stopwatch())
    counts = Counts(100.0, 10.0, 10.0)
    policy.zero_grad()
    made = step.loss(policy, experience, counts, WEIGHTS, reference)
    made.total.backward()
    sums = {name: total for name, (total, _) in made.sums.items()}
    gradients = {name: p.grad.clone() for name, p in policy.named_parameters()}
    return experience, made.total.detach(), sums, gradients


def assert_same(first, second, rtol=1e-7, atol=1e-9):
    torch.testing.assert_close(first[1], second[1], rtol=rtol, atol=atol)
    for name, value in first[2].items():
        torch.testing.assert_close(value, second[2][name], rtol=1e-5, atol=1e-6)
    for name, gradient in first[3].items():
        torch.testing.assert_close(gradient, second[3][name], rtol=rtol, atol=atol, msg=name)


@pytest.mark.parametrize("lengths", [[140], [200, 131, 67, 25]])
@pytest.mark.parametrize(("segments", "copies", "length"), [(1, 1, 1), (4, 1, 5), (3, 3, 4)])
def test_forked_equals_recomputed(lengths, segments, copies, length):
    policy, reference = tiny.delta_net(seed=1), tiny.delta_net(seed=2)
    batch = tiny.batch(lengths, width=210, padding=4)
    plan = RolloutPlan(segments, copies, length)
    forked = update(make_step(Forked()), policy, batch, plan, reference=reference)
    drawn_again = update(make_step(Recompute()), policy, batch, plan, reference=reference)
    valid = forked[0].rollouts.valid
    assert valid.any()
    assert valid.all() == (len(lengths) == 1)  # a short row has fewer positions, and no crash
    same = forked[0].rollouts.tokens == drawn_again[0].rollouts.tokens
    assert same[valid].all()
    torch.testing.assert_close(
        forked[0].rewards[valid], drawn_again[0].rewards[valid], rtol=1e-5, atol=1e-6
    )
    # Both replay the same rollouts: what was drawn is the same but for float32 rounding.
    recomputed = update(
        make_step(Recompute(pad_to_full=True)), policy, batch, plan, forked[0], reference
    )
    assert_same(forked, recomputed)


def test_off_policy_too():
    """After a step the ratios leave 1, and clipping decides."""
    policy = tiny.delta_net(seed=1)
    batch = tiny.batch([150, 90])
    plan = RolloutPlan(4, 2, 4)
    experience = update(make_step(Forked()), policy, batch, plan)[0]
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    forked = update(make_step(Forked()), policy, batch, plan, experience)
    recomputed = update(make_step(Recompute()), policy, batch, plan, experience)
    assert forked[2]["clip_fraction"] > 0
    assert_same(forked, recomputed)


def test_padding_changes_nothing():
    """A row alone, and between longer rows over other padding: the same experience and loss."""
    policy = tiny.delta_net(seed=1)
    plan = RolloutPlan(3, 2, 4)
    together = tiny.batch([200, 131, 67], width=230, padding=9)
    step = make_step(Forked())
    whole = update(step, policy, together, plan)
    summed = {name: torch.zeros_like(g) for name, g in whole[3].items()}
    loss = 0.0
    for row in range(3):
        alone = together.narrow(row, row + 1)
        cut = int(alone.num_tokens)
        alone = tiny.Batch(alone.tokens[:, :cut], alone.num_tokens, alone.rows)
        single = update(step, policy, alone, plan)
        rollouts = single[0].rollouts
        assert torch.equal(rollouts.tokens[0], whole[0].rollouts.tokens[row])
        assert torch.equal(rollouts.positions.index[0], whole[0].rollouts.positions.index[row])
        for name in ("rewards", "advantages"):
            torch.testing.assert_close(
                getattr(single[0], name)[0], getattr(whole[0], name)[row], rtol=1e-5, atol=1e-5
            )
        loss += single[1]
        for name, gradient in single[3].items():
            summed[name] += gradient
    torch.testing.assert_close(loss, whole[1], rtol=1e-6, atol=1e-6)
    for name, gradient in whole[3].items():
        torch.testing.assert_close(gradient, summed[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy_loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_micro_batches_add_up_whatever_the_policy_loss_counts(policy_loss):
    """Rows of unequal length, some too short for a rollout, one by one and together."""
    policy, reference = tiny.delta_net(seed=1), tiny.delta_net(seed=2)
    step = make_step(Forked())
    step.policy_loss = policy_loss
    batch, plan = tiny.batch([150, 25, 81, 12]), RolloutPlan(4, 2, 3)

    def drawn(rows):
        return step.draw(policy, rows, plan, tiny.RowRandom(3, 0, rows.rows))

    with torch.no_grad():
        whole, rows = drawn(batch), [drawn(batch.narrow(i, i + 1)) for i in range(4)]
        for parameter in policy.parameters():  # ratios leave 1
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert (whole.rollouts.valid.sum(1) == 0).any()
    local = step.counts(whole)
    assert torch.equal(torch.stack(local), sum(torch.stack(step.counts(row)) for row in rows))
    rollouts = int(whole.rollouts.valid.sum()) * 2
    assert local.rollout_tokens == 3 * rollouts
    assert local.policy == (rollouts if policy_loss.counts == "sequences" else 3 * rollouts)
    assert step.counts(batch) == (local.ntp_tokens, 0, 0)

    counts = Counts(*(float(n) for n in local))
    together = step.loss(policy, whole, counts, WEIGHTS, reference)
    apart = [step.loss(policy, row, counts, WEIGHTS, reference) for row in rows]
    torch.testing.assert_close(sum(made.total for made in apart), together.total)
    names = {"ntp_loss": 0, "policy_loss": 1, "entropy": 2, "kl": 2}
    for name, (total, count) in together.sums.items():
        torch.testing.assert_close(
            sum(made.sums[name][0] for made in apart), total, rtol=1e-6, atol=1e-6
        )
        assert sum(made.sums[name][1] for made in apart) == count
        assert name not in names or count == local[names[name]]
    means = {name: float(total / count) for name, (total, count) in together.sums.items()}
    weighted = means["ntp_loss"] + 0.7 * means["policy_loss"] + 0.3 * means["kl"]
    assert float(together.total.detach()) == pytest.approx(weighted)


def test_plain_training_is_the_cross_entropy_of_the_sequences():
    policy = tiny.delta_net(seed=1)
    batch = tiny.batch([60, 41], width=64)
    counts = Counts(99.0, 1.0, 1.0)
    loss = make_step(Forked()).loss(policy, batch, counts, LossWeights(policy_weight=0.0)).total
    hidden = policy(batch.tokens, batch.num_tokens).hidden
    logits = hidden @ policy.lm_head.weight.t()
    targets = ntp_targets(batch)
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=-1
    )
    assert (targets >= 0).sum() == 59 + 40
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("options", [{"activation_checkpointing": True}, {"backend": "torch"}])
def test_how_it_is_computed_changes_nothing(options):
    batch = tiny.batch([150, 90])
    plan = RolloutPlan(3, 2, 4)
    results = []
    for extra in ({}, options):
        policy = tiny.delta_net(seed=1, **extra)
        results.append(update(make_step(Forked()), policy, batch, plan))
    assert_same(*results, rtol=1e-10, atol=1e-12)
