"""Spoilt recipes: whatever is wrong with a configuration, the answer is words and not a traceback.

``tests/helpers/configuration_fuzz.py`` runs as many as one likes.
"""

import collections
import os

import pytest
from configuration_fuzz import Case, Workplace, _outcome, fuzz, run, warm_up

COUNT, SEED = 120, 2026
KINDS_OF_OUTCOMES = {"ran", "refused"}


@pytest.mark.slow
def test_no_mutation_ends_in_a_traceback(tmp_path):
    cases = fuzz(COUNT, SEED, tmp_path, seconds=300)
    counts = collections.Counter(case.outcome for case in cases)
    faults = [f"{c.number} {c.recipe}, {c.what}: {c.kind}" for c in cases if c.is_fault]
    assert not faults, "\n".join(faults)
    assert sum(counts.values()) == COUNT
    assert set(counts) == KINDS_OF_OUTCOMES
    assert counts["ran"] >= 10  # as deep as real runs
    assert len({case.recipe for case in cases}) >= 15
    assert len({case.what for case in cases}) >= 90


def test_the_guard_notices_faults(tmp_path, monkeypatch):
    """A fault of the program, an exit without words and a run without end are each told apart."""
    workplace = Workplace(tmp_path)
    monkeypatch.setattr("configuration_fuzz.cli.main", _faulty)
    found = {}
    for name in ("bug", "silent", "hang", "killed", "fine"):
        case = Case(len(found), 0, name, [name], name, b"x: 1\n")
        found[name] = run(case, workplace, 1.5 if name == "hang" else 60, 1.0).outcome
    assert found == {
        "bug": "traceback",
        "silent": "silent refusal",
        "hang": "hang",
        "killed": "signal 9",
        "fine": "ran",
    }
    assert _outcome(1, "") == "exit 1"


def _faulty(argv):
    if argv == ["bug"]:
        raise AttributeError("a fault of the program")
    while argv == ["hang"]:
        pass
    if argv == ["killed"]:
        os.kill(os.getpid(), 9)
    return 2 if argv == ["silent"] else 0


def test_cases_depend_on_seed_and_number_alone(tmp_path):
    one, other = Workplace(tmp_path / "one"), Workplace(tmp_path / "other")
    for number in range(30):
        first, second = one.case(number, 5), other.case(number, 5)
        assert (first.command, first.content) == (second.command, second.content)
    assert one.case(0, 5).content != one.case(0, 6).content


def test_a_recipe_that_was_not_spoilt_must_run(tmp_path):
    workplace = Workplace(tmp_path)
    workplace.recipes = {"tiny_mid": {"model": 3}}
    with pytest.raises(AssertionError, match="model is 3"):
        warm_up(workplace)
