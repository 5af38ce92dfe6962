"""Intervals: they hold the truth as often as they say, and pairing makes them narrower."""

import math

import numpy as np
import pytest

from refine_pl.errors import ConfigError, DataError, UserError
from refine_pl.evaluation import mean_interval, paired_difference


def by_id(values):
    return {f"row-{i}": float(value) for i, value in enumerate(values)}


def hard_rows(generator, rows=200, gain=0.0):
    """Scores of two runs on rows of very different difficulty: ``(a, b)``, ``a`` better by gain."""
    difficulty = generator.uniform(0, 1, rows)
    noise = generator.normal(0, 0.05, (2, rows))
    return difficulty + noise[0] + gain, difficulty + noise[1]


def test_a_mean_of_two_kinds_of_rows():
    found = mean_interval([0.0] * 150 + [1.0] * 50)
    error = math.sqrt(0.25 * 0.75 / 200)  # about 3 points near 25%
    assert found.mean == 0.25
    assert found.low == pytest.approx(0.25 - 1.96 * error, abs=0.006)
    assert found.high == pytest.approx(0.25 + 1.96 * error, abs=0.006)
    assert (found.num_rows, found.level, found.resamples) == (200, 0.95, 10_000)
    percent = found.percent()
    assert (percent.mean, percent.low, percent.high) == (25, 100 * found.low, 100 * found.high)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_holds_the_truth_as_often_as_it_says(level):
    generator = np.random.default_rng(0)
    held, paired_held, trials = 0, 0, 400
    for trial in range(trials):
        scores = generator.beta(1, 3, 100)  # skewed, as scores are; mean 1/4
        found = mean_interval(scores, level=level, resamples=1000, seed=trial)
        held += found.low <= 0.25 <= found.high
        a, b = hard_rows(generator, 100, gain=0.02)
        pair = paired_difference(by_id(a), by_id(b), level=level, resamples=1000, seed=trial)
        paired_held += pair.low <= 0.02 <= pair.high
    margin = 3 * math.sqrt(level * (1 - level) / trials) + 0.01  # percentile: a little too narrow
    assert abs(held / trials - level) < margin
    assert abs(paired_held / trials - level) < margin


def test_pairing_narrows_the_interval_and_finds_the_difference():
    a, b = hard_rows(np.random.default_rng(1), gain=0.02)
    pair = paired_difference(by_id(a), by_id(b))
    apart = [mean_interval(scores) for scores in (a, b)]
    unpaired = math.hypot(*(found.high - found.low for found in apart))
    assert pair.high - pair.low < unpaired / 4
    assert apart[0].low < apart[1].high  # the two intervals overlap widely
    assert pair.low > 0
    assert pair.share_not_positive < 0.01
    assert pair.mean_a - pair.mean_b == pytest.approx(pair.difference, abs=1e-12)
    other = paired_difference(by_id(b), by_id(a))
    assert other.difference == pytest.approx(-pair.difference)
    assert other.share_not_positive > 0.99
    assert pair.percent().low == 100 * pair.low
    assert pair.percent().share_not_positive == pair.share_not_positive


def test_two_points_on_two_hundred_rows_mean_little():
    generator = np.random.default_rng(2)
    a, b = (generator.permutation([1.0] * good + [0.0] * (200 - good)) for good in (54, 50))
    pair = paired_difference(by_id(a), by_id(b))
    assert pair.difference == pytest.approx(0.02)
    assert pair.low < 0 < pair.high
    assert 0.2 < pair.share_not_positive < 0.5


def test_order_and_blocks_change_nothing_and_the_seed_does(monkeypatch):
    generator = np.random.default_rng(3)
    scores = generator.uniform(0, 1, 101)
    found = mean_interval(scores)
    assert mean_interval(generator.permutation(scores)) == found
    assert mean_interval(list(scores)) == found
    assert mean_interval(scores, seed=1) != found
    a = by_id(scores)
    b = by_id(generator.permutation(scores))
    pair = paired_difference(a, b)
    assert paired_difference(dict(reversed(a.items())), b) == pair
    monkeypatch.setattr("refine_pl.evaluation.bootstrap._BLOCK", 1000)
    small = mean_interval(scores)
    assert (small.low, small.high) == pytest.approx((found.low, found.high), abs=1e-12)


@pytest.mark.parametrize("scores", [[0.3], [0.7] * 5, [0.0] * 40])
def test_scores_without_spread(scores):
    found = mean_interval(scores)
    assert (found.low, found.high) == pytest.approx((scores[0],) * 2)
    assert found.num_rows == len(scores)
    same = paired_difference(by_id(scores), by_id(scores))
    assert (same.difference, same.low, same.high, same.share_not_positive) == (0, 0, 0, 1)


def test_rounding_is_no_difference():
    """Gains and losses that cancel make resamples of exactly no difference."""
    pair = paired_difference(by_id([0.1, 0.4]), by_id([0.4, 0.1]))
    assert pair.share_not_positive == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "no scores: a mean needs at least one row"),
        (lambda: mean_interval([0.1, math.nan, math.inf]), "2 of 3 scores .* nan at index 1"),
        (lambda: mean_interval([[0.1]]), r"shape \[1, 1\]"),
        (lambda: mean_interval([0.1], level=95), "level is 95"),
        (lambda: mean_interval([0.1], resamples=0), "resamples is 0"),
        (lambda: paired_difference({}, {}), "no scores of a"),
        (lambda: paired_difference({"x": math.nan}, {"x": 1.0}), "scores of a are not finite"),
        (lambda: paired_difference({"x": 1.0}, {"x": math.nan}), "scores of b are not finite"),
        (
            lambda: paired_difference(by_id([1] * 7), by_id([1] * 2) | {"other": 0.0}),
            r"5 only in a \(row-2, row-3, row-4, \.\.\.\), 1 only in b \(other\)",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert isinstance(caught.value, (ConfigError, DataError))
