"""Corpora inside a corpus of a configuration are made too, by the commands that people type."""

import copy
import sys

import pytest
import yaml
from command_line import CONFIG, run

TEXTS = {"code": "def f(x): return x\n", "books": "It was a dark night.\n"}
DATACLASS = '''
from __future__ import annotations

from dataclasses import dataclass

from refine_pl.data import Corpus


@dataclass
class Both(Corpus):
    """Two corpora, one after the other.

    Args:
        first: the one.
        second: the other.
    """

    first: Corpus
    second: Corpus

    def read(self):
        for corpus in (self.first, self.second):
            for name, text in corpus.documents():
                yield f"{corpus.paths}-{name}", text
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in TEXTS.items():
        for number in range(12):
            (tmp_path / f"{name}{number}.txt").write_text(f"{number} {text}" * 8)
    yield tmp_path
    sys.modules.pop("my_corpora", None)


def files(name):
    return {"class_path": "refine_pl.data.Files", "init_args": {"paths": f"{name}*.txt"}}


def fit(folder, corpus):
    config = copy.deepcopy(CONFIG)
    config["data"]["init_args"] |= {"corpus": corpus, "crop": "all"}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return run("fit", "--config", "run.yaml", "--iterations", "2")


def test_a_mixture_in_a_configuration(folder, caplog):
    members = {name: files(name) for name in TEXTS}
    arguments = {"corpora": members, "weights": {"code": 0.75, "books": 0.25}}
    outcome = fit(folder, {"class_path": "refine_pl.data.Mixture", "init_args": arguments})
    assert outcome.code == 0, outcome.stderr
    assert "code: 48 pieces" in caplog.text
    assert "books: 16 pieces" in caplog.text


def test_a_corpus_of_corpora_of_ones_own(folder):
    """A dataclass whose annotations are text, in a module that has other names than ours."""
    (folder / "my_corpora.py").write_text(DATACLASS)
    arguments = {"first": files("code"), "second": files("books")}
    outcome = fit(folder, {"class_path": "my_corpora.Both", "init_args": arguments})
    assert outcome.code == 0, outcome.stderr


def test_their_arguments_are_checked(folder):
    wrong = {"class_path": "refine_pl.data.Files", "init_args": {"pathes": "a.txt"}}
    arguments = {"corpora": {"code": wrong}}
    outcome = fit(folder, {"class_path": "refine_pl.data.Mixture", "init_args": arguments})
    assert outcome.code == 2
    assert "did you mean paths" in outcome.stderr.replace("\n", " ")
