"""Policy losses: their papers' equations in plain Python, golden vectors, gradients, masks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from policy_losses import policy_inputs
from safetensors.torch import load_file
from torch import Tensor

from refine_pl.errors import ConfigError, UserError
from refine_pl.losses import (
    ClippedPolicy,
    ClippedWeights,
    LossSum,
    PolicyLoss,
    Reinforce,
    SequenceRatio,
)

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "grpo.safetensors")
SHAPES = [(2, 3, 4, 5), (1, 1, 1, 1), (3, 1, 2, 7), (1, 5, 1, 3)]

LOSSES = {
    "clipped": ClippedPolicy(0.1, 0.3),
    "clipped, sequences": ClippedPolicy(0.1, 0.3, counts="sequences"),
    "clipped, no dual clip": ClippedPolicy(0.1, 0.3, dual_clip=None),
    "clipped, a tight dual clip": ClippedPolicy(dual_clip=1.5),
    "sequence ratio": SequenceRatio(0.1, 0.3),
    "weights": ClippedWeights(0.1, 0.3),
    "weights, sequences": ClippedWeights(counts="sequences"),
    "reinforce": Reinforce(),
    "reinforce, sequences": Reinforce(counts="sequences"),
}
every_loss = pytest.mark.parametrize("policy_loss", LOSSES.values(), ids=LOSSES)


# What the papers say about one rollout: numbers of its tokens now and then, and its advantage.


def clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def ratios_of(new: list[float], old: list[float]) -> list[float]:
    return [math.exp(a - b) for a, b in zip(new, old, strict=True)]


def clipped_policy(loss: ClippedPolicy, new: list[float], old: list[float], a: float):
    low, high = 1 - loss.clip_ratio_low, 1 + loss.clip_ratio_high
    values, clipped = [], 0
    for r in ratios_of(new, old):
        value = -min(r * a, clip(r, low, high) * a)  # PPO, Eq. 7
        clipped += clip(r, low, high) * a < r * a
        if loss.dual_clip is not None and a < 0:  # 1912.09729, Eq. 5
            value = -max(-value, loss.dual_clip * a)
        values.append(value)
    return values, sum(ratios_of(new, old)), clipped


def sequence_ratio(loss: SequenceRatio, new: list[float], old: list[float], a: float):
    likelier = math.exp(sum(new)) / math.exp(sum(old))
    s = likelier ** (1 / len(new))  # 2507.18071, Eq. 7
    bounded = clip(s, 1 - loss.clip_ratio_low, 1 + loss.clip_ratio_high)
    return [-min(s * a, bounded * a)], s, bounded * a < s * a  # Eq. 5


def clipped_weights(loss: ClippedWeights, new: list[float], old: list[float], a: float):
    low, high = 1 - loss.clip_ratio_low, 1 + loss.clip_ratio_high
    ratios = ratios_of(new, old)
    weights = [clip(r, low, high) for r in ratios]  # 2506.13585, Eq. 5
    values = [-w * a * lp for w, lp in zip(weights, new, strict=True)]  # Eq. 4
    return values, sum(ratios), sum(w != r for w, r in zip(weights, ratios, strict=True))


def reinforce(loss: Reinforce, new: list[float], old: list[float], a: float):
    return [-a * lp for lp in new], None, None


EQUATIONS = {
    ClippedPolicy: clipped_policy,
    SequenceRatio: sequence_ratio,
    ClippedWeights: clipped_weights,
    Reinforce: reinforce,
}


@every_loss
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_papers_equation(policy_loss: PolicyLoss, shape: tuple[int, ...]) -> None:
    new, old, advantages, mask = policy_inputs(shape)
    made = policy_loss(new, old, advantages, mask)
    expected = dict.fromkeys(made.sums, 0.0)
    rollouts = tokens = 0
    for b, s, n in mask.any(-1).nonzero().tolist():
        kept = mask[b, s, n]
        now, then = new[b, s, n][kept].tolist(), old[b, s, n][kept].tolist()
        a = advantages[b, s, n, 0].item()
        values, ratio, clipped = EQUATIONS[type(policy_loss)](policy_loss, now, then, a)
        whole = sum(values) / len(values) if policy_loss.counts == "sequences" else sum(values)
        expected["policy_loss"] += whole
        expected["approx_kl"] += sum(then) - sum(now)
        if ratio is not None:
            expected["ratio"] += ratio
            expected["clip_fraction"] += clipped
        rollouts, tokens = rollouts + 1, tokens + len(now)
    count = rollouts if policy_loss.counts == "sequences" else tokens
    assert made.total.item() == pytest.approx(expected["policy_loss"])
    expected.pop("dual_clip_fraction", None)
    found = {name: value.item() for name, (value, _) in made.sums.items() if name in expected}
    assert found == pytest.approx(expected)
    assert policy_loss.count(mask) == made.sums["policy_loss"][1] == count
    per_rollout = {"ratio", "clip_fraction"} if isinstance(policy_loss, SequenceRatio) else set()
    for name in expected.keys() - {"policy_loss"}:
        assert made.sums[name][1] == (rollouts if name in per_rollout else tokens), name
    if shape == SHAPES[0] and "clip_fraction" in expected:
        assert 2 < expected["clip_fraction"] < made.sums["clip_fraction"][1] - 2


def test_numbers_made_by_hand() -> None:
    """Two rollouts: ratios 2 and 1/2 with A = 1; one token of ratio 4 with A = -1."""
    log = math.log
    old = torch.tensor([[[[log(0.25), log(0.5)], [log(0.1), 9.0]]]])
    new = torch.tensor([[[[log(0.5), log(0.25)], [log(0.4), 9.0]]]])
    advantages = torch.tensor([[[[1.0], [-1.0]]]])
    mask = torch.tensor([[[[True, True], [True, False]]]])

    def total(policy_loss: PolicyLoss) -> float:
        return policy_loss(new, old, advantages, mask).total.item()

    # min(2, 1.2) + min(0.5, 0.8) is gained by the first; the second costs 4, or at most 3.
    assert total(ClippedPolicy(dual_clip=None)) == pytest.approx(-1.2 - 0.5 + 4)
    assert total(ClippedPolicy()) == pytest.approx(-1.2 - 0.5 + 3)
    assert total(ClippedPolicy(counts="sequences")) == pytest.approx(-1.7 / 2 + 3)
    # The first rollout as a whole is as likely as it was: s = 1. The second one's s is 4.
    assert total(SequenceRatio(0.2, 0.2)) == pytest.approx(-1 + 4)
    assert total(SequenceRatio(0.2, 0.2)) == pytest.approx(total(SequenceRatio(0.0, 0.0)))
    weights = ClippedWeights(clip_ratio_low=1.0, clip_ratio_high=0.5)  # 1.5, 0.5; 1.5
    assert total(weights) == pytest.approx(-1.5 * log(0.5) - 0.5 * log(0.25) + 1.5 * log(0.4))
    assert total(Reinforce()) == pytest.approx(-log(0.5) - log(0.25) + log(0.4))
    halves = -(log(0.5) + log(0.25)) / 2
    assert total(Reinforce(counts="sequences")) == pytest.approx(halves + log(0.4))


def test_golden() -> None:
    logprobs = GOLDEN["log_probs"].clone().requires_grad_()
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    old, advantages = GOLDEN["old_log_probs"], GOLDEN["token_advantages"]
    made = ClippedPolicy()(logprobs, old, advantages, mask)
    (made.total / mask.sum()).backward()
    torch.testing.assert_close(logprobs.grad, GOLDEN["grad_log_probs"], rtol=1e-5, atol=1e-7)
    names = ("policy_loss", "clip_fraction", "approx_kl", "dual_clip_fraction")
    for name in names:
        total, count = made.sums[name]
        torch.testing.assert_close(total / count, GOLDEN[name], rtol=1e-5, atol=1e-7)
    assert set(made.sums) == {*names, "ratio"}


def test_the_dual_clip_binds_where_it_should() -> None:
    new, old, advantages, mask = policy_inputs()
    total, count = ClippedPolicy(dual_clip=1.5)(new, old, advantages, mask).sums[
        "dual_clip_fraction"
    ]
    ratio = (new - old).exp()
    assert total == ((ratio > 1.5) & (advantages < 0) & mask).sum() > 5
    assert count == mask.sum()


GRADIENTS = [loss for loss in LOSSES.values() if not isinstance(loss, ClippedWeights)]


@pytest.mark.parametrize("policy_loss", GRADIENTS, ids=lambda loss: type(loss).__name__)
def test_gradients(policy_loss: PolicyLoss) -> None:
    new, old, advantages, mask = policy_inputs()
    new.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: policy_loss(x, old, advantages, mask).total, (new,), eps=1e-7, atol=1e-6
    )


def test_a_clipped_weight_has_no_gradient_and_its_token_keeps_its_own() -> None:
    new, old, advantages, mask = policy_inputs()
    new.requires_grad_()
    ClippedWeights(0.1, 0.3)(new, old, advantages, mask).total.backward()
    weight = (new - old).exp().clamp(0.9, 1.3).detach()
    torch.testing.assert_close(new.grad, -advantages * weight * mask)
    # The clipped objective drops the same tokens.
    dropped = new.detach().clone().requires_grad_()
    ClippedPolicy(0.1, 0.3)(dropped, old, advantages, mask).total.backward()
    assert (dropped.grad[mask] == 0).sum() > 5
    assert (new.grad[mask] != 0).all()


@every_loss
def test_on_policy_gradient_is_minus_the_advantage(policy_loss: PolicyLoss) -> None:
    """All of them agree where they start: with old_logprobs equal to logprobs."""
    _, old, advantages, mask = policy_inputs()
    new = old.clone().requires_grad_()
    made = policy_loss(new, old, advantages, mask)
    made.total.backward()
    share = 1 / mask.sum(-1, keepdim=True).clamp(min=1) if policy_loss.counts != "tokens" else 1
    torch.testing.assert_close(new.grad, (-advantages * mask * share).expand(old.shape))
    assert made.sums["approx_kl"][0] == 0
    if "ratio" in made.sums:
        torch.testing.assert_close(*(x.double() for x in made.sums["ratio"]))
        assert made.sums["clip_fraction"][0] == 0


@every_loss
@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf, 1e4])
def test_masked_entries_give_no_loss_and_no_gradient(policy_loss: PolicyLoss, junk: float) -> None:
    new, old, advantages, mask = policy_inputs(dtype=torch.float32)

    def run(*tensors: Tensor) -> tuple[LossSum, Tensor]:
        logprobs = tensors[0].clone().requires_grad_()
        made = policy_loss(logprobs, tensors[1], tensors[2], mask)
        made.total.backward()
        assert logprobs.grad is not None
        return made, logprobs.grad

    clean, gradient = run(new, old, advantages)
    spoilt, spoilt_gradient = run(
        new.masked_fill(~mask, junk),
        old.masked_fill(~mask, -junk),
        advantages.masked_fill(~mask.any(-1, keepdim=True), junk),
    )
    assert torch.equal(clean.total, spoilt.total)
    assert clean.sums == spoilt.sums
    assert torch.equal(gradient, spoilt_gradient)
    assert not spoilt_gradient[~mask].any()


@every_loss
def test_an_empty_mask_is_zero_with_a_gradient(policy_loss: PolicyLoss) -> None:
    new, old, advantages, mask = policy_inputs()
    new.requires_grad_()
    none = torch.zeros_like(mask)
    made = policy_loss(new, old, advantages, none)
    made.total.backward()
    assert made.total == policy_loss.count(none) == 0
    assert not any(value for pair in made.sums.values() for value in pair)
    assert not new.grad.any()


@every_loss
def test_huge_ratios_stay_finite(policy_loss: PolicyLoss) -> None:
    old = torch.tensor([-200.0, -200.0, -0.1, -0.1]).view(4, 1, 1, 1)
    new = torch.tensor([-0.1, -0.1, -200.0, -200.0]).view(4, 1, 1, 1).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(4, 1, 1, 1)
    made = policy_loss(new, old, advantages, torch.ones(4, 1, 1, 1, dtype=torch.bool))
    made.total.backward()
    assert made.total.isfinite()
    assert new.grad.isfinite().all()


@every_loss
def test_no_gradient_reaches_old_logprobs_advantages_or_the_log(policy_loss: PolicyLoss) -> None:
    new, old, advantages, mask = policy_inputs()
    made = policy_loss(*(t.requires_grad_() for t in (new, old, advantages)), mask)
    made.total.backward()
    assert new.grad is not None
    assert old.grad is None
    assert advantages.grad is None
    assert not any(value.requires_grad for pair in made.sums.values() for value in pair)


@every_loss
def test_sums_of_micro_batches_add_up(policy_loss: PolicyLoss) -> None:
    new, old, advantages, mask = policy_inputs()
    whole = policy_loss(new, old, advantages, mask)
    rows = [[t[i : i + 1] for t in (new, old, advantages, mask)] for i in (0, 1)]
    parts = [policy_loss(*row) for row in rows]
    torch.testing.assert_close(whole.total, parts[0].total + parts[1].total)
    for name, pair in whole.sums.items():
        for i, value in enumerate(pair):
            torch.testing.assert_close(value, parts[0].sums[name][i] + parts[1].sums[name][i])


@every_loss
def test_half_precision_is_computed_in_float32(policy_loss: PolicyLoss) -> None:
    made = policy_loss(*policy_inputs(dtype=torch.bfloat16))
    assert made.total.dtype == torch.float32
    assert {total.dtype for total, _ in made.sums.values()} == {torch.float32}


class Mine(PolicyLoss):
    """A loss of a user's own: as little as can be written."""

    def loss(self, logprobs, old_logprobs, advantages, loss_mask):
        return LossSum(self.sum(-(advantages * logprobs).where(loss_mask, 0), loss_mask))


def test_one_of_your_own() -> None:
    inputs = policy_inputs()
    made = Mine()(*inputs)
    assert set(made.sums) == {"policy_loss"}
    torch.testing.assert_close(made.total, Reinforce()(*inputs).total)
    torch.testing.assert_close(
        Mine("sequences")(*inputs).total, LOSSES["reinforce, sequences"](*inputs).total
    )


def test_what_is_not_a_sum_is_refused() -> None:
    class Bare(Mine):
        def loss(self, *inputs):
            return super().loss(*inputs).total

    class Tokens(Mine):
        def loss(self, logprobs, *_):
            return LossSum(-logprobs)

    with pytest.raises(UserError, match=r"returned a Tensor(.|\n)*Bare.loss(.|\n)*LossSum"):
        Bare()(*policy_inputs())
    with pytest.raises(UserError, match=r"returned a total of shape \[2, 3, 4, 5\]"):
        Tokens()(*policy_inputs())


def test_built_by_jsonargparse() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PolicyLoss, "policy_loss")

    def build(*args: str) -> PolicyLoss:
        return parser.instantiate(parser.parse_args(list(args))).policy_loss

    path = "--policy_loss=refine_pl.losses"
    made = build(f"{path}.ClippedPolicy", "--policy_loss.dual_clip=null")
    assert isinstance(made, ClippedPolicy)
    assert made.dual_clip is None
    assert (made.clip_ratio_low, made.clip_ratio_high, made.counts) == (0.2, 0.2, "tokens")
    made = build(f"{path}.ClippedWeights", "--policy_loss.counts=sequences")
    assert isinstance(made, ClippedWeights)
    assert made.counts == "sequences"
    made = build(f"--policy_loss={Mine.__module__}.Mine", "--policy_loss.counts=sequences")
    assert type(made).__name__ == "Mine"
    for args in (
        (f"{path}.ClippedPolicy", "--policy_loss.clip_ratio_low=-1"),
        (f"{path}.Reinforce", "--policy_loss.counts=rollouts"),
        (f"{path}.SequenceRatio", "--policy_loss.counts=tokens"),
        (f"{path}.PolicyLoss",),
        (f"{path}.kl_to_reference",),
    ):
        with pytest.raises(Exception, match="policy_loss"):
            build(*args)


def test_settings_that_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dual_clip is 0\.5"):
        ClippedPolicy(dual_clip=0.5)
    with pytest.raises(ConfigError, match=r"counts is 'sequence'(.|\n)*did you mean sequences"):
        Reinforce(counts="sequence")
