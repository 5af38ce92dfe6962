"""Rewards that are plain functions: what they are called with, and what they can get wrong."""

import numpy as np
import pytest
import torch
from reward_tester import check_reward, random_rollouts

from refine_pl.errors import ConfigError, UserError
from refine_pl.rewards import ExactMatch, FromFunction, WeightedSum

CALLS = []
PLAIN = "a number, not a function"


class Letters:
    """Decodes token 0 as a, 1 as b, ..."""

    def decode(self, ids):
        return "".join(chr(97 + i) for i in ids)


def shared_letters(rollouts, targets):
    CALLS.append((rollouts, targets))
    return [len(set(a) & set(b)) / 5 for a, b in zip(rollouts, targets, strict=True)]


def matches(rollouts):
    return ExactMatch().score(rollouts)


def tracked(rollouts):
    return rollouts.old_logprobs.mean(-1)


def one_argument(texts):
    return [0.0 for _ in texts]


def made(name, **options):
    return FromFunction(f"{__name__}.{name}", **options)


def test_a_function_of_texts():
    rollouts = random_rollouts()
    CALLS.clear()
    reward = made("shared_letters", weight=0.5)
    scores = check_reward(reward, rollouts, tokenizer=Letters())
    texts, targets = CALLS[0]
    assert len(texts) == len(targets) == 5 * 4  # five valid positions, four rollouts of each
    i = 0
    for b, s in rollouts.valid.nonzero().tolist():
        for n in range(4):
            assert texts[i] == Letters().decode(rollouts.tokens[b, s, n].tolist())
            assert targets[i] == Letters().decode(rollouts.targets[b, s].tolist())
            expected = len(set(texts[i]) & set(targets[i])) / 5
            assert scores[b, s, n].item() == pytest.approx(expected)
            i += 1
    assert i == 20
    total = WeightedSum({"mine": reward, "match": ExactMatch()}).score(rollouts)
    expected = 0.5 * scores + ExactMatch().score(rollouts)
    torch.testing.assert_close(total[rollouts.valid], expected[rollouts.valid])


def test_without_a_valid_position_it_is_not_called():
    rollouts = random_rollouts(batch_size=1, num_segments=1)
    assert not rollouts.valid.any()
    CALLS.clear()
    assert not made("shared_letters").score(rollouts).any()
    assert not CALLS


def test_a_function_of_records():
    rollouts = random_rollouts(vocab_size=3)
    scores = check_reward(made("matches", reads="records"), rollouts)
    assert torch.equal(scores, ExactMatch().score(rollouts))
    check_reward(made("tracked", reads="records"))  # no gradient comes out


def test_the_run_gives_it_the_tokenizer():
    total = WeightedSum({"mine": made("shared_letters")})
    with pytest.raises(ConfigError, match="reads text, but no tokenizer"):
        total.score(random_rollouts())
    total.bind(Letters())
    check_reward(total)


@pytest.mark.parametrize(
    "values",
    [
        [0.5] * 20,
        (1,) * 20,
        [True] * 20,
        torch.full((20,), 2.0, dtype=torch.float64),
        np.ones(20),
        [np.float32(1)] * 20,
        [torch.tensor(1.0)] * 20,
    ],
    ids=lambda values: type(values).__name__,
)
def test_numbers_of_every_kind(values, monkeypatch):
    monkeypatch.setitem(globals(), "shared_letters", lambda rollouts, targets: values)
    scores = check_reward(made("shared_letters"), tokenizer=Letters())
    assert (scores[random_rollouts().valid] == float(values[0])).all()


@pytest.mark.parametrize(
    ("values", "came"),
    [
        ([0.5] * 19, "returned 19 numbers"),
        ([], "returned 0 numbers"),
        (0.5, r"returned 0\.5"),
        (None, "returned None"),
        ("good", "returned 'good'"),
        (["good"] * 20, r"returned \['good', 'good'"),
        ([None] * 20, r"returned \[None, None"),
        ([[1.0]] * 20, r"returned \[\[1\.0\]"),
        ((x for x in [1.0]), "returned <generator"),
        ({"a": 1.0}, "returned {'a': 1.0}"),
    ],
)
def test_what_are_not_numbers_is_refused(values, came, monkeypatch):
    monkeypatch.setitem(globals(), "shared_letters", lambda rollouts, targets: values)
    total = WeightedSum({"mine": made("shared_letters")})
    total.bind(Letters())
    with pytest.raises(UserError, match=came) as caught:
        total.score(random_rollouts())
    assert f"{__name__}.shared_letters" in str(caught.value)
    assert "one number for each of the 20 rollouts" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_names_the_function(value, monkeypatch):
    monkeypatch.setitem(globals(), "shared_letters", lambda rollouts, targets: [value] * 20)
    total = WeightedSum({"mine": made("shared_letters")})
    total.bind(Letters())
    with pytest.raises(UserError, match="20 non-finite") as caught:
        total.score(random_rollouts())
    assert f"{__name__}.shared_letters" in str(caught.value)
    assert "reward 'mine'" in str(caught.value)


def test_a_function_of_records_that_returns_no_tensor_is_named(monkeypatch):
    monkeypatch.setitem(globals(), "matches", lambda rollouts: [1.0])
    with pytest.raises(UserError, match=rf"returned a list(.|\n)*{__name__}\.matches"):
        WeightedSum({"mine": made("matches", reads="records")}).score(random_rollouts())


REFUSED = {
    "brackets_close": "function is 'brackets_close'",
    "": "function is ''",
    ".f": "function is '.f'",
    "no_such_rewards.f": r"there is no module no_such_rewards(.|\n)*looked for from the folder",
    "refine_pl.gone.f": "there is no module refine_pl.gone",
    "broken_rewards.f": "broken_rewards.f cannot be imported: NameError: name 'spam'",
    "imports_a_lot.f": "imports_a_lot.f cannot be imported: ModuleNotFoundError(.|\n)*not_there",
    f"{__name__}.shared_leters": "has no shared_leters(.|\n)*did you mean .*shared_letters",
    f"{__name__}.PLAIN": "PLAIN is not a function",
    f"{__name__}.one_argument": r"one_argument\(rollouts, targets\): too many positional",
}


@pytest.mark.parametrize(("path", "message"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_called_is_refused_at_the_start(path, message, tmp_path, monkeypatch):
    (tmp_path / "broken_rewards.py").write_text("def f(a, b):\n    return a\nspam\n")
    (tmp_path / "imports_a_lot.py").write_text("import not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=message):
        FromFunction(path)


def test_what_it_reads_must_be_known():
    with pytest.raises(ConfigError, match=r"reads is 'text'(.|\n)*did you mean texts"):
        made("shared_letters", reads="text")
    with pytest.raises(ConfigError, match=r"shared_letters\(rollouts\): missing a required"):
        made("shared_letters", reads="records")
    # Written in C: it does not say how it is called, and is taken at its word.
    assert FromFunction("torch.erf").source == "torch.erf"
