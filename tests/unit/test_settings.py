"""Settings of parts by path: what counts as one, what is refused, and nothing stays changed."""

import pytest
import torch

from refine_pl.errors import ConfigError
from refine_pl.losses import ClippedPolicy
from refine_pl.rewards import ExactMatch, Reward
from refine_pl.selectors import Entropy
from refine_pl.training.settings import PartSettings


class Judge(Reward):
    """Keeps more than settings."""

    def __init__(self):
        super().__init__(weight=0.5)
        self.threshold = 0.25
        self.strict = True
        self.vocabulary = {"the": 1, "a": 2}
        self.network = torch.nn.Linear(2, 2)
        self.helper = Helper()

    def score(self, rollouts):
        return rollouts.old_logprobs.sum(-1)


class Helper:
    def __init__(self):
        self.depth = 3


def settings():
    rewards = {"match": ExactMatch(), "mine": Judge()}
    parts = {"selector": Entropy(), "rewards": rewards, "policy_loss": ClippedPolicy()}
    return PartSettings(parts), parts


def test_numbers_of_parts_are_settings_and_nothing_else_is():
    known, _ = settings()
    assert known.own() == {
        "selector.min_prefix": 20,
        "selector.min_suffix": 20,
        "selector.offset": 0,
        "selector.selection_temperature": 1.0,
        "rewards.match.weight": 1.0,
        "rewards.mine.weight": 0.5,
        "rewards.mine.threshold": 0.25,
        "policy_loss.clip_ratio_low": 0.2,
        "policy_loss.clip_ratio_high": 0.2,
        "policy_loss.dual_clip": 3.0,
    }


def test_values_are_there_inside_and_gone_after_an_error_too():
    known, parts = settings()
    given = {"selector.min_prefix": 7.6, "rewards.mine.helper.depth": 5, "rewards.match.weight": 0}
    for error in (None, KeyError):
        try:
            with known.given(given):
                assert parts["selector"].min_prefix == 8  # a whole number stays one
                assert parts["rewards"]["mine"].helper.depth == 5
                assert parts["rewards"]["match"].weight == 0
                if error:
                    raise error
        except KeyError:
            pass
        assert parts["selector"].min_prefix == 20
        assert parts["rewards"]["mine"].helper.depth == 3
        assert parts["rewards"]["match"].weight == 1.0


def test_own_values_are_those_of_the_moment_they_were_remembered():
    known, parts = settings()
    parts["selector"].selection_temperature = 9.0
    with known.given(known.own()):
        assert parts["selector"].selection_temperature == 1.0
    known.remember()
    assert known.own()["selector.selection_temperature"] == 9.0


REFUSED = {
    "selector.selection_temprature": (1.0, "did you mean 'selector.selection_temperature'"),
    "selector": (1.0, "no numeric setting 'selector'"),
    "min_prefix": (1.0, "no numeric setting"),
    "rewards.mine.strict": (1.0, "no numeric setting"),
    "rewards.mine.vocabulary.the": (1.0, "no numeric setting"),
    "rewards.other.weight": (1.0, "no numeric setting"),
    "selector.selection_temperature": (0.0, r"to be 0[\s\S]*where: +here"),
    "policy_loss.clip_ratio_high": (-0.1, "to be -0.1"),
    "rewards.match.weight": (float("nan"), "to be nan"),
}


@pytest.mark.parametrize("path", REFUSED)
def test_wrong_paths_and_values_are_refused(path):
    value, message = REFUSED[path]
    with pytest.raises(ConfigError, match=message):
        settings()[0].check(path, 1.0, value, where="here")


def test_right_ones_are_not():
    known, _ = settings()
    for path, value in known.own().items():
        known.check(path, value, where="here")
    known.check("rewards.mine.helper.depth", 1.0, where="here")
