"""Advantages: golden vectors, the degenerate groups, and validity."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from refine_pl.advantages import AdvantageEstimator, GroupRelative, LeaveOneOut, group_statistics

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "grpo.safetensors")
ESTIMATORS = [
    GroupRelative(),
    GroupRelative(ddof=0),
    GroupRelative(normalize_std=False),
    LeaveOneOut(),
]


def all_valid(rewards: Tensor) -> Tensor:
    return torch.ones(rewards.shape[:2], dtype=torch.bool)


def random_rewards(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "group_by"), [("n1", "auto"), ("n1", "sequence"), ("n4", "auto"), ("n4", "position")]
)
def test_golden(name: str, group_by: str) -> None:
    rewards = GOLDEN[f"rewards_{name}"]
    advantages = GroupRelative(group_by).estimate(rewards, all_valid(rewards))
    assert advantages.dtype == torch.float32
    torch.testing.assert_close(advantages, GOLDEN[f"advantages_{name}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("group_by", ["sequence", "position"])
@pytest.mark.parametrize(("s", "n"), [(4, 3), (1, 3), (4, 1), (1, 1)])
def test_against_plain_python(group_by: str, s: int, n: int) -> None:
    rewards = random_rewards(3, s, n)
    valid = all_valid(rewards)
    valid[0, -1] = False
    valid[1] = False
    relative = GroupRelative(group_by).estimate(rewards, valid)
    centred = GroupRelative(group_by, normalize_std=False).estimate(rewards, valid)
    population = GroupRelative(group_by, ddof=0, eps=0.0).estimate(rewards, valid)
    left_out = LeaveOneOut(group_by).estimate(rewards, valid)
    stds = []
    for b in range(3):
        slots = [(i, j) for i in range(s) for j in range(n) if valid[b, i]]
        groups = (
            [slots]
            if group_by == "sequence"
            else [[slot for slot in slots if slot[0] == i] for i in range(s)]
        )
        for members in filter(None, groups):
            values = [rewards[b, i, j].item() for i, j in members]
            mean = statistics.fmean(values)
            std = statistics.stdev(values) if len(values) > 1 else 0.0
            stds.append(std)
            for k, (i, j) in enumerate(members):
                others = values[:k] + values[k + 1 :]
                away = values[k] - mean
                assert relative[b, i, j].item() == pytest.approx(away / (std + 1e-6), abs=1e-5)
                assert centred[b, i, j].item() == pytest.approx(away, abs=1e-6)
                if others:
                    expected = values[k] - statistics.fmean(others)
                    assert left_out[b, i, j].item() == pytest.approx(expected, abs=1e-6)
                    expected = away / statistics.pstdev(values)
                    assert population[b, i, j].item() == pytest.approx(expected, abs=1e-5)
                else:
                    assert left_out[b, i, j] == population[b, i, j] == 0
    for advantages in (relative, centred, population, left_out):
        assert not advantages[~valid].any()
    found = group_statistics(rewards, valid, group_by)
    assert found.std.tolist() == pytest.approx(stds, abs=1e-6)
    assert found.zero_spread.tolist() == [std == 0 for std in stds]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("n", [1, 4])
def test_groups_without_spread_give_exactly_zero(estimator: AdvantageEstimator, n: int) -> None:
    equal = torch.full((2, 7, n), 0.1)
    assert not estimator.estimate(equal, all_valid(equal)).any()
    single = random_rewards(2, 7, n)
    valid = torch.zeros(2, 7, dtype=torch.bool)
    valid[0, 3] = True
    advantages = estimator.estimate(single, valid)
    assert n > 1 or not advantages.any()
    assert not advantages[1].any()
    assert advantages.isfinite().all()


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("n", [1, 4])
def test_invalid_entries_change_nothing(estimator: AdvantageEstimator, n: int) -> None:
    rewards = random_rewards(3, 6, n)
    valid = all_valid(rewards)
    valid[:, 4:] = False
    spoilt = rewards.clone()
    spoilt[:, 4:] = torch.nan
    advantages = estimator.estimate(spoilt, valid)
    assert torch.equal(advantages, estimator.estimate(rewards, valid))
    alone = estimator.estimate(rewards[:, :4], valid[:, :4])
    assert torch.equal(advantages[:, :4], alone)
    assert not advantages[:, 4:].any()


def test_leave_one_out_is_a_multiple_of_the_centred_reward() -> None:
    rewards = random_rewards(2, 3, 5)
    centred = GroupRelative(normalize_std=False).estimate(rewards, all_valid(rewards))
    left_out = LeaveOneOut().estimate(rewards, all_valid(rewards))
    torch.testing.assert_close(left_out, 5 / 4 * centred)


def test_statistics_skip_groups_without_members() -> None:
    rewards = torch.tensor([[[1.0, 1.0], [0.0, 1.0]], [[0.0, 9.0], [5.0, 5.0]]])
    valid = torch.tensor([[True, True], [False, False]])
    found = group_statistics(rewards, valid, "auto")
    assert found.std.tolist() == pytest.approx([0.0, 0.5**0.5])
    assert found.zero_spread.tolist() == [True, False]
    std, zero_spread = group_statistics(rewards, torch.zeros_like(valid), "sequence")
    assert std.shape == zero_spread.shape == (0,)
