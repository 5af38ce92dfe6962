"""Position selectors, against a slow reference written in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torch import Tensor

from refine_pl.errors import ConfigError
from refine_pl.randomness import RowRandom
from refine_pl.records import Positions, RolloutPlan
from refine_pl.selectors import Entropy, Even, Extremum, Fixed, PositionSelector, Random, smooth

PLAN = RolloutPlan(num_segments=4, rollouts_per_position=1, rollout_length=5)


def make_entropy(lengths: list[int], padded: int | None = None, seed: int = 0) -> Tensor:
    """Random entropies, NaN after each row's tokens."""
    generator = torch.Generator().manual_seed(seed)
    entropy = torch.full((len(lengths), padded or max(lengths)), torch.nan)
    for row, length in enumerate(lengths):
        entropy[row, :length] = 3 * torch.rand(length, generator=generator)
    return entropy


def rows(n: int, update: int = 0) -> RowRandom:
    return RowRandom(7, update, range(n))


def slow_smooth(entropy: list[float], length: int) -> list[float]:
    width = length if length % 2 else length + 1
    out = []
    for t in range(len(entropy)):
        window = [
            entropy[u] for u in range(t - width // 2, t + width // 2 + 1) if 0 <= u < len(entropy)
        ]
        out.append(sum(window) / len(window))
    return out


def slow_candidates(n: int, plan: RolloutPlan, selector: PositionSelector) -> list[list[int]]:
    segments: list[list[int]] = [[] for _ in range(plan.num_segments)]
    size = n // plan.num_segments
    for p in range(n):
        owner = min(p // size, plan.num_segments - 1) if size else plan.num_segments - 1
        if p < selector.min_prefix or p - 1 - selector.offset < 0:
            continue
        if n - p < selector.min_suffix or n - p < plan.rollout_length:
            continue
        segments[owner].append(p)
    return segments


cases = st.tuples(
    st.lists(st.integers(1, 150), min_size=1, max_size=3),  # tokens of each row
    st.integers(1, 9),  # S
    st.integers(1, 12),  # L
    st.integers(1, 25),  # min_prefix
    st.integers(1, 25),  # min_suffix
    st.integers(0, 3),  # offset
    st.integers(0, 1000),  # seed
)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_against_the_slow_reference(case: tuple) -> None:
    lengths, num_segments, length, prefix, suffix, offset, seed = case
    plan = RolloutPlan(num_segments, 1, length)
    entropy = make_entropy(lengths, max(lengths) + seed % 4, seed)
    num_tokens = torch.tensor(lengths)
    bounds = {"min_prefix": prefix, "min_suffix": suffix, "offset": offset}

    smoothed = smooth(entropy, num_tokens, length)
    draws = {
        "entropy": Entropy(**bounds).select(entropy, num_tokens, plan, rows(len(lengths))),
        "random": Random(**bounds).select(entropy, num_tokens, plan, rows(len(lengths))),
        "argmax": Extremum("argmax", **bounds).select(entropy, num_tokens, plan, rows(1)),
        "argmin": Extremum("argmin", **bounds).select(entropy, num_tokens, plan, rows(1)),
        "even": Even(**bounds).select(entropy * 0, num_tokens, plan, rows(0)),
    }
    for row, n in enumerate(lengths):
        slow = slow_smooth(entropy[row, :n].tolist(), length)
        assert smoothed[row, :n].tolist() == pytest.approx(slow, abs=1e-12)
        for segment, legal in enumerate(slow_candidates(n, plan, Entropy(**bounds))):
            scores = {p: slow[p - 1 - offset] for p in legal}
            for name, positions in draws.items():
                index = positions.index[row, segment].item()
                assert positions.valid[row, segment].item() == bool(legal)
                assert index in legal if legal else index == 0
                if legal and name == "even":
                    assert index == legal[(len(legal) - 1) // 2]
                if legal and name == "argmax":
                    assert scores[index] == pytest.approx(max(scores.values()), abs=1e-12)
                if legal and name == "argmin":
                    assert scores[index] == pytest.approx(min(scores.values()), abs=1e-12)


def test_large_case_is_legal() -> None:
    lengths = [16_384, 9_001, 100, 41, 40, 39, 1]
    plan = RolloutPlan(64, 1, 5)
    num_tokens = torch.tensor(lengths)
    positions = Entropy().select(make_entropy(lengths), num_tokens, plan, rows(len(lengths)))
    assert positions.index.shape == positions.valid.shape == (7, 64)
    assert positions.index.dtype == torch.int64
    assert positions.valid.dtype == torch.bool
    start = torch.arange(64) * (num_tokens // 64)[:, None]
    where = positions.valid
    index = positions.index
    assert (index >= start)[where].all()
    assert (index >= 20)[where].all()
    assert (num_tokens[:, None] - index >= 20)[where].all()
    assert (index[:, :-1] < index[:, 1:])[where[:, :-1] & where[:, 1:]].all()
    assert where[0].all()
    assert where[4].sum() == 1  # 40 tokens: position 20 alone
    assert index[4, where[4]].item() == 20
    assert not where[5:].any()


@pytest.mark.parametrize("selector", [Entropy(), Random()], ids=["entropy", "random"])
def test_distribution(selector: PositionSelector) -> None:
    """Frequencies follow the softmax of the smoothed entropy: chi-square within five sigma."""
    n, plan, num_draws = 80, RolloutPlan(2, 1, 4), 4000
    entropy = make_entropy([n])
    batch = entropy.expand(num_draws, -1)
    drawn = selector.select(batch, torch.full((num_draws,), n), plan, rows(num_draws)).index
    smoothed = slow_smooth(entropy[0].tolist(), plan.rollout_length)
    for segment, legal in enumerate(slow_candidates(n, plan, selector)):
        is_entropy = isinstance(selector, Entropy)
        weights = [math.exp(smoothed[p - 1]) if is_entropy else 1.0 for p in legal]
        expected = torch.tensor(weights) / sum(weights) * num_draws
        counts = torch.bincount(drawn[:, segment], minlength=n)[legal]
        assert counts.sum() == num_draws
        chi_square = ((counts - expected) ** 2 / expected).sum().item()
        freedom = len(legal) - 1
        assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


def test_selection_temperature() -> None:
    num_draws, n = 300, 120
    batch = make_entropy([n]).expand(num_draws, -1)
    num_tokens = torch.full((num_draws,), n)
    best = Extremum("argmax").select(batch, num_tokens, PLAN, rows(1)).index
    cold = Entropy(selection_temperature=1e-6).select(batch, num_tokens, PLAN, rows(num_draws))
    assert torch.equal(cold.index, best)
    warm = Entropy(selection_temperature=1e6).select(batch, num_tokens, PLAN, rows(num_draws))
    uniform = Random().select(batch, num_tokens, PLAN, rows(num_draws))
    # Equal weights up to 1e-6, and the same uniform numbers.
    assert (warm.index == uniform.index).float().mean() > 0.999


@pytest.mark.parametrize(
    "selector",
    [Entropy(), Entropy(offset=1), Random(), Extremum("argmin"), Fixed(positions=[25, 60, 200])],
    ids=lambda s: type(s).__name__,
)
def test_padding_changes_nothing(selector: PositionSelector) -> None:
    lengths = [300, 30, 157, 64, 41]
    batch = make_entropy(lengths, padded=333)
    together = selector.select(batch, torch.tensor(lengths), PLAN, rows(len(lengths)))
    for row, n in enumerate(lengths):
        alone = selector.select(
            batch[row : row + 1, :n], torch.tensor([n]), PLAN, RowRandom(7, 0, [row])
        )
        assert torch.equal(alone.index[0], together.index[row])
        assert torch.equal(alone.valid[0], together.valid[row])


def test_extremum_takes_the_first_of_equals() -> None:
    for mode in ("argmax", "argmin"):
        positions = Extremum(mode).select(torch.ones(1, 120), torch.tensor([120]), PLAN, rows(1))
        assert positions.index.tolist() == [[20, 30, 60, 90]]


def test_extreme_scores_still_draw_candidates() -> None:
    entropy = torch.zeros(1, 200)
    entropy[0, 100] = 1e30
    selector = Entropy(selection_temperature=1e-3)
    positions = selector.select(entropy, torch.tensor([200]), PLAN, rows(1))
    assert positions.valid.all()
    # The peak is smoothed over five tokens, and a score belongs to the position after it.
    assert 99 <= positions.index[0, 2] <= 103 or 99 <= positions.index[0, 1] <= 103


def test_half_precision_entropy() -> None:
    entropy = make_entropy([200]).bfloat16()
    positions = Entropy().select(entropy, torch.tensor([200]), PLAN, rows(1))
    assert positions.valid.all()


def fixed(selector: Fixed, lengths: list[int]) -> Positions:
    entropy = make_entropy(lengths)
    return selector.select(entropy, torch.tensor(lengths), PLAN, rows(len(lengths)))


def test_fixed_stride() -> None:
    positions = fixed(Fixed(stride=8), [70, 47, 10])
    assert positions.index.tolist() == [[24, 32, 40, 48], [24, 0, 0, 0], [0, 0, 0, 0]]
    assert positions.valid.tolist() == [[True] * 4, [True] + [False] * 3, [False] * 4]


def test_fixed_stride_that_never_fits_has_one_invalid_position() -> None:
    positions = fixed(Fixed(stride=500), [70, 47])
    assert positions.index.tolist() == [[0], [0]]
    assert not positions.valid.any()


def test_fixed_positions() -> None:
    positions = fixed(Fixed(positions=[5, 20, 50]), [70, 40])
    assert positions.index.tolist() == [[0, 20, 50], [0, 20, 0]]
    assert positions.valid.tolist() == [[False, True, True], [False, True, False]]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"stride": 0},
        {"stride": 4, "positions": [3]},
        {"positions": []},
        {"positions": [4, 4]},
        {"positions": [9, 4]},
        {"positions": [0, 4]},
    ],
    ids=str,
)
def test_fixed_refuses(arguments: dict) -> None:
    with pytest.raises(ConfigError) as caught:
        Fixed(**arguments)
    for value in arguments.values():
        assert str(value) in str(caught.value)
    if not arguments:
        assert "stride=None and positions=None" in str(caught.value)


def test_built_by_jsonargparse() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PositionSelector, "selector")

    def build(name: str, **arguments: object) -> PositionSelector:
        given = {"class_path": f"refine_pl.selectors.{name}", "init_args": arguments}
        return parser.instantiate(parser.parse_object({"selector": given})).selector

    entropy = build("Entropy", selection_temperature=0.5, min_prefix=2)
    assert (entropy.selection_temperature, entropy.min_prefix, entropy.offset) == (0.5, 2, 0)
    assert build("Random", offset=1).offset == 1
    assert build("Extremum", mode="argmin").mode == "argmin"
    assert build("Fixed", stride=512).stride == 512
    assert build("Fixed", positions=[32, 64]).positions == [32, 64]
    for name, wrong in [
        ("Entropy", {"selection_temperature": 0}),
        ("Extremum", {"mode": "median"}),
        ("Fixed", {"positions": [-3]}),
    ]:
        with pytest.raises(Exception, match=next(iter(wrong))):
            build(name, **wrong)


@pytest.mark.parametrize("length", [39, 40, 100, 250])
def test_count_is_what_select_finds(length):
    plan = RolloutPlan(4, 1, 5)
    entropy, num_tokens = torch.rand(1, length), torch.tensor([length])
    for selector in (Entropy(), Random(), Fixed(stride=30), Fixed(positions=[10, 20, 77])):
        found = selector.select(entropy, num_tokens, plan, RowRandom(0, 0, [0]))
        assert selector.count(length, plan) == int(found.valid.sum())
