"""Differences over documents and seeds, the temperature of equal loss, costs, and the verdict."""

import numpy as np
import pytest

from refine_pl.comparison.arms import to_match
from refine_pl.comparison.control import GRID, equal_loss
from refine_pl.comparison.cost import times_plain, times_plain_run
from refine_pl.comparison.pairing import by_document, differences
from refine_pl.comparison.records import ArmResult, Difference
from refine_pl.comparison.words import change, rows, verdict
from refine_pl.errors import ConfigError, DataError
from refine_pl.evaluation.crossed import crossed_difference
from refine_pl.training.run_folder import HeldOut, SweepOverlay


def numbers(values):
    """``[seeds, documents]`` as mappings."""
    return [{f"d{i}": float(v) for i, v in enumerate(row)} for row in values]


def test_intervals_hold_the_true_difference_as_often_as_they_say():
    generator = np.random.default_rng(3)
    tries, inside, true = 200, 0, 0.3
    for _ in range(tries):
        hard = generator.normal(size=40) * 5  # of a document, the same for both arms
        b = np.tile(hard, (1, 1))
        a = b + true + generator.normal(size=(1, 40))
        found = crossed_difference(numbers(a), numbers(b), resamples=400)
        assert found.low < found.difference < found.high
        inside += found.low <= true <= found.high
    assert 0.88 < inside / tries <= 0.99  # 95%, and what 200 tries may miss


def test_seeds_that_differ_widen_the_interval():
    generator = np.random.default_rng(4)
    b = np.zeros((3, 50))
    a = generator.normal(size=(3, 50))
    moved = a + np.array([[-2.0], [0.0], [2.0]])
    alike = crossed_difference(numbers(a), numbers(b))
    apart = crossed_difference(numbers(moved), numbers(b))
    assert apart.high - apart.low > 3 * (alike.high - alike.low)
    assert apart.by_seed == pytest.approx(tuple(moved.mean(1)))
    assert apart.difference == pytest.approx(float(a.mean()))
    again = crossed_difference(numbers(a)[::-1], numbers(b))
    assert again.difference == pytest.approx(alike.difference)


@pytest.mark.parametrize("other", [[], [[1.0]], [[1.0, 2.0], [1.0, 2.0]]])
def test_what_was_not_measured_alike_is_refused(other):
    with pytest.raises(DataError, match="same documents"):
        crossed_difference(numbers([[1.0, 2.0]]), numbers(other))


def test_crops_of_a_document_are_one_document():
    rows_ = [
        HeldOut(i, name, 9, 1, {"val/ntp_loss": v})
        for i, (name, v) in enumerate([("a", 1.0), ("a", 3.0), ("b", 5.0)])
    ]
    found = by_document(rows_)
    assert found == {"val/ntp_loss": {"a": 2.0, "b": 5.0}}
    (only,) = differences([found], [found])
    assert (only.name, only.difference, only.sign) == ("val/ntp_loss", 0.0, 0)


def test_the_temperature_of_equal_loss():
    def loss(temperature):
        return 1.5 + 0.8 * (temperature - 0.98) ** 2 - 0.3 * (temperature - 0.98) ** 3

    losses = [loss(t) for t in GRID]
    checked = 0
    for temperature in np.linspace(0.42, 0.95, 30):
        found = equal_loss(GRID, losses, loss(temperature))
        assert found == pytest.approx(temperature, abs=2e-4)
        checked += 1
    assert checked == 30
    assert equal_loss(GRID, losses, 1.0) == pytest.approx(0.975)  # lower than any: the lowest one
    assert equal_loss(GRID, losses, 9.0) == GRID[-1]


def config(**model):
    own = {
        "policy_weight": 1.0,
        "kl_weight": 0.0,
        "selector": {"class_path": "refine_pl.selectors.Fixed", "init_args": {"stride": 8}},
        "generator": {"class_path": "refine_pl.rollouts.Forked"},
        "num_segments": 8,
        "rollouts_per_position": 4,
        "rollout_length": 5,
        "minibatch_size": 8,
        "update": "auto",
        "rollouts_per": "batch",
        "steps": "per_minibatch",
    }
    data = {"init_args": {"sequence_length": 512, "batch_size": 8}}
    return {"model": own | model, "data": data}


def test_costs_in_token_passes():
    positions = len([p for p in range(8, 512, 8) if p >= 20 and 512 - p >= 20])
    rollouts = positions * 4
    drawn, read = rollouts * 5, rollouts * 4
    assert times_plain(config()) == pytest.approx(1 + (drawn + 3 * read) / (3 * 512))
    assert times_plain(config(update="two_pass")) == pytest.approx(times_plain(config()) + 1 / 3)
    assert times_plain(config(minibatch_size=4)) == pytest.approx(times_plain(config()) + 1 / 6)
    assert times_plain(config(policy_weight=0.0)) == 1
    assert times_plain(config(), {"policy_weight": 0.0, "iterations": 3}) == 1
    kl = times_plain(config(kl_weight=0.1)) - times_plain(config())
    assert kl == pytest.approx((512 + read) / (3 * 512))
    recompute = {"class_path": "refine_pl.rollouts.Recompute"}
    with pytest.raises(ConfigError, match="Recompute"):
        times_plain(config(generator=recompute))


def test_costs_of_a_run_are_those_of_its_stages():
    stages = {"plain": {"iterations": 3, "policy_weight": 0.0}, "refine": {"iterations": 1}}
    whole = config() | {"schedule": {"stages": stages}}
    assert times_plain_run(whole) == pytest.approx((3 + times_plain(config())) / 4)
    assert times_plain_run(config()) == times_plain(config())


def test_the_arms_whose_computing_is_matched():
    arms = [SweepOverlay("refine", "base", None), SweepOverlay("kl", "evidence", "kl.yaml")]
    assert to_match(None, arms) == []
    assert to_match([], arms) == arms
    assert to_match(["kl"], arms) == arms[1:]
    with pytest.raises(ConfigError, match="no arm lk"):
        to_match(["lk"], arms)


def measure(name, difference, half, seeds=(1,)):
    return Difference(
        name,
        0.5 + difference,
        0.5,
        difference,
        difference - half,
        difference + half,
        [difference * s for s in seeds],
    )


def test_the_verdict_says_what_the_intervals_say():
    match, ntp = "val/expected_match", "val/ntp_loss"
    better = ArmResult(
        "refine",
        "sft",
        [measure(ntp, 0.008, 0.002), measure(match, 0.0139, 0.0012, (1, 2, 1))],
        [0.92, 0.93, 0.91],
        [measure(match, 0.0003, 0.002)],
    )
    text = verdict(better, 3)
    assert text.startswith("ReFINE beats step-matched SFT in exact match by +1.39 points [+1.27,")
    assert "in every one of 3 seeds" in text
    assert "next-token loss is higher (+0.0080" in text
    assert "Beyond temperature" in text
    assert "no difference" in text
    assert next(iter(rows(better)))[0] == "exact match"
    worse = ArmResult("mine", "sft", [measure(match, -0.02, 0.001)])
    assert "mine is worse than step-matched SFT" in verdict(worse, 1)
    equal = ArmResult("mine", "sft", [measure(match, 0.001, 0.01)])
    assert "do not differ" in verdict(equal, 1)
    assert change(measure(ntp, -0.5, 0.1)) == "-0.5000 [-0.6000, -0.4000]"
