"""A schedule changes settings of parts: each is a plain attribute, read at every call."""

import inspect

import pytest
import tiny
import torch
from policy_losses import policy_inputs
from reward_tester import random_rollouts

from refine_pl import advantages, losses, rewards, rollouts, selectors
from refine_pl.advantages import AdvantageEstimator
from refine_pl.losses import PolicyLoss
from refine_pl.records import RolloutPlan
from refine_pl.rewards import ExactMatch, Reward, WeightedSum
from refine_pl.rollouts import RolloutGenerator
from refine_pl.selectors import PositionSelector

BASES = {
    advantages: AdvantageEstimator,
    losses: PolicyLoss,
    rewards: Reward,
    rollouts: RolloutGenerator,
    selectors: PositionSelector,
}
REQUIRED = {
    "WeightedSum": {"rewards": {"match": ExactMatch()}},
    "FromFunction": {"function": "refine_pl.rewards.edit_distance.levenshtein"},
    "Fixed": {"stride": 7},
}
OTHER = {  # values that differ from the defaults enough to be seen
    "selection_temperature": 30.0,
    "min_prefix": 33,
    "min_suffix": 41,
    "offset": 4,
    "stride": 11,
    "eps": 0.5,
    "ddof": 0,
    "weight": 0.25,
    "clip_ratio_low": 0.05,
    "clip_ratio_high": 0.6,
    "dual_clip": 1.25,
}


def parts():
    """All exported parts, with the numeric arguments of their constructors."""
    for package, base in BASES.items():
        for name in package.__all__:
            part = getattr(package, name)
            if inspect.isclass(part) and issubclass(part, base) and not inspect.isabstract(part):
                made = part(**REQUIRED.get(name, {}))
                for argument in inspect.signature(part).parameters:
                    value = getattr(made, argument, None)
                    if isinstance(value, int | float) and not isinstance(value, bool):
                        yield part, argument


SETTINGS = list(parts())


def outcome(part):
    """What a part makes of the same inputs: a list of tensors."""
    if isinstance(part, PolicyLoss):
        made = part(*policy_inputs())
        return [made.total, *(total for total, _ in made.sums.values())]
    if isinstance(part, AdvantageEstimator):
        given = torch.rand(3, 4, 3, generator=torch.Generator().manual_seed(0))
        return [part.estimate(given, torch.ones(3, 4, dtype=torch.bool))]
    if isinstance(part, PositionSelector):
        entropy = torch.rand(4, 150, generator=torch.Generator().manual_seed(0))
        found = part.select(
            entropy, torch.tensor([150, 140, 90, 77]), RolloutPlan(4, 1, 5), tiny.randomness(4)
        )
        return [found.index, found.valid]
    assert isinstance(part, Reward)
    part.score = lambda rollouts: ExactMatch().score(rollouts)  # its weight alone is looked at
    return list(WeightedSum({"one": part, "two": ExactMatch()}).score_parts(random_rollouts())[:1])


@pytest.mark.parametrize(
    ("part", "argument"), SETTINGS, ids=[f"{part.__name__}.{name}" for part, name in SETTINGS]
)
def test_a_setting_that_is_changed_later_is_as_if_given(part, argument):
    required = REQUIRED.get(part.__name__, {})
    changed = part(**required)
    before = outcome(changed)
    setattr(changed, argument, OTHER[argument])
    after = outcome(changed)
    given = outcome(part(**required | {argument: OTHER[argument]}))
    assert all(torch.equal(a, b) for a, b in zip(after, given, strict=True))
    without_entropy = (selectors.Fixed, selectors.Random, selectors.Even)
    if part not in without_entropy or argument != "offset":
        # For those it only excludes the first positions, which min_prefix does too.
        assert not all(map(torch.equal, before, after))


def test_all_numeric_settings_are_looked_at():
    names = {name for _, name in SETTINGS}
    assert names == set(OTHER)
    assert len(SETTINGS) >= 28
