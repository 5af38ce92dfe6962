"""Without the optional package the command says what to install, and nothing else needs it."""

import sys

import command_line


def test_the_way_out_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # importing it fails
    outcome = command_line.run("lm-eval", "--tasks", "a", "--pretrained", "model")
    assert outcome.code == 2
    assert "the package lm-eval is not installed" in outcome.stderr
    assert "pip install 'refine-pl[lm-eval]'" in outcome.stderr


def test_its_options_can_be_read():
    outcome = command_line.run("lm-eval", "--help")
    assert outcome.code == 0
    assert "--num_fewshot" in outcome.stdout
