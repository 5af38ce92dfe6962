"""Rewards: the formulas, the exact values of a perfect rollout, and what users can get wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from reward_tester import check_reward, random_rollouts
from torch import Tensor

from refine_pl.errors import ConfigError, UserError
from refine_pl.records import Rollouts
from refine_pl.rewards import (
    EditDistance,
    EmbeddingSimilarity,
    ExactMatch,
    LogLikelihood,
    Reward,
    WeightedSum,
)

BUILT_IN = {
    "exact_match": ExactMatch(),
    "similarity": EmbeddingSimilarity(),
    "log_likelihood": LogLikelihood(),
    "likelihood": LogLikelihood(exp=True),
    "edit_distance": EditDistance(),
    "sum": WeightedSum({"similarity": EmbeddingSimilarity(), "exact": ExactMatch(0.5)}),
}


class Broken(Reward):
    """A user's reward that returns whatever it was given."""

    def __init__(self, value: object, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.value = value

    def score(self, rollouts: Rollouts) -> Tensor:
        return self.value  # type: ignore[return-value]


def perfect(rollouts: Rollouts) -> Rollouts:
    """Every rollout equals its target."""
    return replace(
        rollouts,
        tokens=rollouts.targets.unsqueeze(2).expand_as(rollouts.tokens),
        hidden=rollouts.target_hidden.unsqueeze(2).expand_as(rollouts.hidden),
        target_logprobs=rollouts.old_logprobs,
    )


@pytest.mark.parametrize("reward", BUILT_IN.values(), ids=BUILT_IN)
@pytest.mark.parametrize("n", [1, 4])
def test_contract(reward: Reward, n: int) -> None:
    check_reward(reward, random_rollouts(rollouts_per_position=n, vocab_size=3))


def test_the_tester_finds_faults() -> None:
    rollouts = random_rollouts()
    right = torch.zeros(rollouts.tokens.shape[:3])
    check_reward(Broken(right), rollouts)
    wrong = [1.0, right[0], right.double(), right / 0, right.clone().requires_grad_()]
    for value in wrong:
        with pytest.raises(AssertionError):
            check_reward(Broken(value), rollouts)

    class ReadsInvalid(Reward):
        def score(self, rollouts: Rollouts) -> Tensor:
            score = rollouts.target_logprobs.detach().mean(-1)
            return score - score.mean()

    with pytest.raises(AssertionError, match="invalid entries"):
        check_reward(ReadsInvalid(), rollouts)


def test_formulas() -> None:
    rollouts = random_rollouts(vocab_size=3)
    match = ExactMatch().score(rollouts)
    edit = EditDistance().score(rollouts)
    similarity = EmbeddingSimilarity().score(rollouts)
    for index in torch.cartesian_prod(*(torch.arange(k) for k in match.shape)).tolist():
        b, s, n = index
        tokens, targets = rollouts.tokens[b, s, n].tolist(), rollouts.targets[b, s].tolist()
        equal = sum(x == y for x, y in zip(tokens, targets, strict=True))
        assert match[b, s, n].item() == pytest.approx(equal / 5)
        assert edit[b, s, n].item() == pytest.approx(1 - plain_levenshtein(tokens, targets) / 5)
        cos = F.cosine_similarity(rollouts.hidden[b, s, n], rollouts.target_hidden[b, s], dim=-1)
        assert similarity[b, s, n].item() == pytest.approx(cos.mean().item(), abs=1e-6)
    mean = rollouts.target_logprobs.mean(-1)
    assert torch.equal(LogLikelihood().score(rollouts), mean)
    assert torch.equal(LogLikelihood(exp=True).score(rollouts), mean.exp())


def plain_levenshtein(a: list[int], b: list[int]) -> int:
    table = [[i + j for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            replaced = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(replaced, table[i - 1][j] + 1, table[i][j - 1] + 1)
    return table[-1][-1]


@pytest.mark.parametrize(("length", "vocab_size"), [(1, 2), (2, 2), (7, 2), (16, 4), (32, 10)])
def test_edit_distance_against_the_plain_table(length: int, vocab_size: int) -> None:
    rollouts = random_rollouts(2, 2, 6, length, vocab_size=vocab_size, seed=length)
    score = EditDistance().score(rollouts)
    for b, s, n in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(6)).tolist():
        distance = plain_levenshtein(
            rollouts.tokens[b, s, n].tolist(), rollouts.targets[b, s].tolist()
        )
        assert score[b, s, n].item() == pytest.approx(1 - distance / length, abs=1e-6)


def test_edit_distance_forgives_a_shift() -> None:
    rollouts = random_rollouts(1, 1, 1, 5)
    rollouts = replace(
        rollouts,
        tokens=torch.tensor([[[[9, 1, 2, 3, 4]]]]),
        targets=torch.tensor([[[1, 2, 3, 4, 5]]]),
    )
    assert ExactMatch().score(rollouts).item() == 0
    assert EditDistance().score(rollouts).item() == pytest.approx(1 - 2 / 5)


@pytest.mark.parametrize("hidden_size", [3, 64, 257, 2048])
@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e15])
def test_a_rollout_equal_to_its_target_scores_exactly(hidden_size: int, scale: float) -> None:
    rollouts = perfect(random_rollouts(2, 2, 3, 5, hidden_size=hidden_size))
    rollouts = replace(
        rollouts,
        hidden=rollouts.hidden * scale,
        target_hidden=rollouts.target_hidden * scale,
    )
    hybrid = WeightedSum({"similarity": EmbeddingSimilarity(), "match": ExactMatch()})
    assert (ExactMatch().score(rollouts) == 1).all()
    assert (EditDistance().score(rollouts) == 1).all()
    assert (EmbeddingSimilarity().score(rollouts) == 1).all()
    assert torch.equal(LogLikelihood().score(rollouts), rollouts.old_logprobs.mean(-1))
    assert (hybrid.score(rollouts)[rollouts.valid] == 2).all()


def test_similarity_survives_rounding_noise_and_half_precision() -> None:
    rollouts = perfect(random_rollouts(4, 4, 4, 5, hidden_size=256))
    noisy = rollouts.hidden * (1 + 2e-7 * torch.randn(rollouts.hidden.shape))
    assert (EmbeddingSimilarity().score(replace(rollouts, hidden=noisy)) == 1).all()
    half = replace(
        rollouts,
        hidden=rollouts.hidden.bfloat16(),
        target_hidden=rollouts.target_hidden.bfloat16(),
    )
    score = EmbeddingSimilarity().score(half)
    assert score.dtype == torch.float32
    assert (score == 1).all()
    opposite = replace(rollouts, hidden=-rollouts.hidden)
    assert (EmbeddingSimilarity().score(opposite) == -1).all()
    zero = replace(rollouts, hidden=torch.zeros_like(rollouts.hidden))
    assert (EmbeddingSimilarity().score(zero) == 0).all()


def test_weighted_sum_and_parts() -> None:
    rollouts = random_rollouts(vocab_size=3)
    rewards = {"items": ExactMatch(weight=2.0), "my.edit": EditDistance(weight=-0.5)}
    total, parts = WeightedSum(rewards).score_parts(rollouts)
    assert list(parts) == ["items", "my.edit"]
    valid = rollouts.valid
    assert torch.equal(parts["items"][valid], ExactMatch().score(rollouts)[valid])
    assert torch.equal(parts["my.edit"][valid], EditDistance().score(rollouts)[valid])
    torch.testing.assert_close(total, 2 * parts["items"] - 0.5 * parts["my.edit"])
    assert total.dtype == torch.float32
    assert not total[~valid].any()


def test_weight_zero_is_not_computed() -> None:
    class Explodes(Reward):
        def score(self, rollouts: Rollouts) -> Tensor:
            raise AssertionError("it was computed")

    total = WeightedSum({"off": Explodes(weight=0.0), "on": ExactMatch()})
    assert list(total.score_parts(random_rollouts())[1]) == ["on"]


def test_bind_reaches_every_reward() -> None:
    class Tokenizer:
        def decode(self, ids: list[int]) -> str:
            return " ".join(map(str, ids))

    class Reads(Reward):
        def score(self, rollouts: Rollouts) -> Tensor:
            texts = self.decode(rollouts.tokens.flatten(0, 2))
            return torch.tensor([float("1" in text) for text in texts]).view(
                rollouts.tokens.shape[:3]
            )

    rewards = {"reads": Reads(), "off": Reads(weight=0)}
    total = WeightedSum(rewards)
    with pytest.raises(ConfigError, match="Reads reads text"):
        total.score(random_rollouts())
    total.bind(Tokenizer())
    check_reward(total)
    check_reward(rewards["off"])
    check_reward(Reads(), tokenizer=Tokenizer())


@pytest.mark.parametrize(
    "rewards",
    [{}, {"a": ExactMatch(0.0)}, {"a": ExactMatch(float("nan"))}, {"a": torch.nn.Identity()}],
    ids=["empty", "all-zero", "nan", "not-a-reward"],
)
def test_weighted_sum_refuses(rewards: dict) -> None:
    with pytest.raises(ConfigError):
        WeightedSum(rewards)


SHAPE = random_rollouts().tokens.shape[:3]


@pytest.mark.parametrize(
    ("value", "came"),
    [
        (None, "a NoneType"),
        (0.5, "a float"),
        (torch.zeros(SHAPE[:2]), r"shape \[2, 3\]"),
        (torch.zeros(*SHAPE, 5), r"shape \[2, 3, 4, 5\]"),
        (torch.zeros(SHAPE, dtype=torch.int64), "torch.int64"),
        (torch.zeros(SHAPE, dtype=torch.bool), "torch.bool"),
        (torch.full(SHAPE, torch.inf), r"20 non-finite values, the first at \(0, 0, 0\): inf"),
    ],
)
def test_a_wrong_reward_is_named(value: object, came: str) -> None:
    total = WeightedSum({"fine": ExactMatch(), "mine": Broken(value)})
    with pytest.raises(UserError, match=came) as caught:
        total.score(random_rollouts())
    message = str(caught.value)
    assert "reward 'mine'" in message
    assert "Broken" in message
    assert "[B, S, N] = [2, 3, 4]" in message


def test_what_is_wrong_where_not_valid_is_forgiven() -> None:
    rollouts = random_rollouts()
    value = torch.ones(SHAPE, dtype=torch.float64, requires_grad=True)
    spoilt = torch.where(rollouts.valid[..., None], value, torch.nan)
    total, parts = WeightedSum({"mine": Broken(spoilt)}).score_parts(rollouts)
    assert not total.requires_grad
    assert not parts["mine"].requires_grad
    assert total.dtype == parts["mine"].dtype == torch.float32
    assert torch.equal(total, rollouts.valid[..., None].expand(SHAPE).float())


def test_built_by_jsonargparse() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(WeightedSum, "reward")
    part = {"class_path": "refine_pl.rewards.LogLikelihood", "init_args": {"exp": True}}
    given = {"rewards": {"likely": part, "exact": {"class_path": "refine_pl.rewards.ExactMatch"}}}
    total = parser.instantiate(parser.parse_object({"reward": given})).reward
    assert list(total.parts()) == ["likely", "exact"]
    assert total.score(random_rollouts()).shape == SHAPE
