"""A class of the user's own that cannot be made is named, with its settings and its line."""

import operator

import pytest
from command_line import run, write_config, write_documents

MINE = """
from dataclasses import dataclass

import torch
from lightning.pytorch import Callback
from refine_pl.rewards import Reward


class Scored(Reward):
    def score(self, rollouts):
        return torch.zeros(rollouts.tokens.shape[:3])


class Looks(Scored):
    def __init__(self, weight: float = 1.0):
        super().__init__(weight)
        self.value = {}["missing"]


class Deeper(Looks):
    def __init__(self, weight: float = 1.0):
        super().__init__(weight)


class Inside(Scored):
    def __init__(self, weight: float = 1.0):
        super().__init__(weight)
        torch.zeros(2) @ torch.zeros(3)


class Parses(Scored):
    def __init__(self, weight: float = 1.0):
        super().__init__(weight)
        try:
            {}["missing"]
        except KeyError:
            int("many")


class Silent(Scored):
    def __init__(self, weight: float = 1.0):
        raise TypeError


@dataclass
class After(Callback):
    number: int = 0

    def __post_init__(self):
        1 / self.number


def build(weight: float = 1.0) -> Reward:
    raise AttributeError("no such thing")
"""
LINES = {text.strip(): number for number, text in enumerate(MINE.splitlines(), 1)}
FAULTS = {  # what it says, the line
    "Looks": ("KeyError: 'missing'", 'self.value = {}["missing"]'),
    "Deeper": ("KeyError: 'missing'", 'self.value = {}["missing"]'),
    "Inside": ("RuntimeError: inconsistent tensor size", "torch.zeros(2) @ torch.zeros(3)"),
    "Parses": ("ValueError: invalid literal for int()", 'int("many")'),
    "build": ("AttributeError: no such thing", 'raise AttributeError("no such thing")'),
    "Silent": ("TypeError", "raise TypeError"),
    "After": ("ZeroDivisionError: division by zero", "1 / self.number"),
}
CALLBACKS = ("After",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all tests: Python keeps a module that it has imported."""
    made = tmp_path_factory.mktemp("place")
    write_documents(made / "docs")
    (made / "faulty_parts.py").write_text(MINE)
    return made


@pytest.fixture
def place(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def said(outcome):
    """The error on one line."""
    return " ".join(outcome.stderr[outcome.stderr.index("error: ") :].split())


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_named(place, name):
    says, line = FAULTS[name]
    key = "trainer.callbacks.0" if name in CALLBACKS else "model.rewards.exact"
    write_config(place / "c.yaml", {key: {"class_path": f"faulty_parts.{name}"}})
    outcome = run("fit", "--config", "c.yaml")
    assert outcome.code == 2
    assert f"faulty_parts.{name} cannot be made: its own code raised {says}" in said(outcome)
    where = f"where: {key}; {place / 'faulty_parts.py'}, line {LINES[line]}"
    assert said(outcome).endswith(where)


def test_each_place_is_named(place):
    edits = {
        f"model.rewards.{key}": {"class_path": "faulty_parts.Looks"} for key in ("exact", "mine")
    }
    write_config(place / "c.yaml", edits)
    outcome = run("fit", "--config", "c.yaml")
    assert "where: model.rewards.exact; model.rewards.mine; " in said(outcome)


def test_what_it_refuses_in_our_own_words_stays(place):
    edits = {
        "model.rewards.exact": {
            "class_path": "faulty_parts.Scored",
            "init_args": {"on_error": "no"},
        }
    }
    write_config(place / "c.yaml", edits)
    outcome = run("fit", "--config", "c.yaml")
    assert outcome.code == 2
    assert "cannot be made" not in outcome.stderr


def test_a_fault_of_the_program_keeps_its_traceback(place, monkeypatch):
    monkeypatch.setattr("refine_pl.rewards.base.check_choice", operator.index)
    write_config(place / "c.yaml", {"model.rewards.mine": {"class_path": "faulty_parts.Scored"}})
    with pytest.raises(TypeError, match="exactly one argument"):
        run("fit", "--config", "c.yaml")
