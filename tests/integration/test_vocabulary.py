"""The backbone's vocabulary and the tokenizer's: who follows whom, and what is refused when."""

from __future__ import annotations

import pytest
import yaml
from command_line import run, write_documents
from small_tokenizers import byte_level

from refine_pl.commands import lightning_cli
from refine_pl.training.checks import special_tokens_note


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A run on some documents, whose backbone says nothing about its vocabulary."""
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "docs", number=4, length=400)
    backbone = {"hidden_size": 32, "num_hidden_layers": 1, "num_heads": 2}
    return {
        "trainer": {"accelerator": "cpu", "max_steps": 1},
        "model": {
            "backbone": {"class_path": "refine_pl.backbones.DeltaNet", "init_args": backbone},
            "num_segments": 2,
            "minibatch_size": 2,
        },
        "data": {
            "class_path": "refine_pl.data.TextData",
            "init_args": {
                "corpus": {
                    "class_path": "refine_pl.data.Files",
                    "init_args": {"paths": "docs/*.txt"},
                },
                "tokenizer": {"class_path": "refine_pl.data.Bytes"},
                "sequence_length": 100,
                "batch_size": 2,
                "cache_dir": str(tmp_path / "cache"),
            },
        },
    }


@pytest.fixture
def parsed(monkeypatch):
    """The options of the backbone that a run of these settings is made with."""

    def options(settings, *words):
        made = []
        monkeypatch.setattr(
            lightning_cli.RefineCLI, "instantiate_classes", lambda self: made.append(self.config)
        )
        monkeypatch.setattr(lightning_cli.RefineCLI, "_run_subcommand", lambda *_: None)
        outcome = run("fit", "--config", yaml.safe_dump(settings), *words)
        assert outcome.code == 0, outcome.stderr
        return made[0]["fit"].model.backbone.init_args

    return options


def test_a_fresh_backbone_follows_the_tokenizer(settings, parsed, tmp_path):
    found = parsed(settings)
    assert (found.vocab_size, found.eos_token_id) == (257, 256)
    tokenizer = byte_level(tmp_path / "tokenizer")
    init_args = {"name": str(tmp_path / "tokenizer")}
    settings["data"]["init_args"]["tokenizer"] = {
        "class_path": "refine_pl.data.HubTokenizer",
        "init_args": init_args,
    }
    found = parsed(settings)
    assert (found.vocab_size, found.eos_token_id) == (tokenizer.vocab_size, tokenizer.eos_token_id)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.backbone.vocab_size", "300"], (300, 256)),
        (["--model.backbone.init_args.eos_token_id", "0"], (257, 0)),
        (["--model.backbone.eos_token_id", "null"], (257, None)),
        (["--data.tokenizer", "refine_pl.data.Bytes"], (257, 256)),
    ],
)
def test_what_is_given_stays(settings, parsed, words, expected):
    found = parsed(settings, *words)
    assert (found.vocab_size, found.eos_token_id) == expected


def test_the_printed_configuration_says_it(settings):
    outcome = run("fit", "--config", yaml.safe_dump(settings), "--print_config")
    shown = yaml.safe_load(outcome.stdout)["model"]["backbone"]["init_args"]
    assert (shown["vocab_size"], shown["eos_token_id"]) == (257, 256)


def test_too_small_a_vocabulary_is_refused_before_anything_is_tokenized(settings, tmp_path):
    settings["model"]["backbone"]["init_args"]["vocab_size"] = 256
    outcome = run("fit", "--config", yaml.safe_dump(settings))
    assert outcome.code == 2
    assert "the tokenizer has ids up to 256, the backbone only 256 tokens" in outcome.stderr
    assert not (tmp_path / "cache").exists()
    assert "Tokenizing" not in outcome.stderr


@pytest.mark.parametrize(
    ("ids", "config", "said"),
    [
        ({"eos_token_id": 2}, {"eos_token_id": 2}, None),
        ({"eos_token_id": 2}, {"eos_token_id": [5, 2]}, None),
        ({"eos_token_id": 2}, {"eos_token_id": None}, None),
        ({"eos_token_id": 2}, {}, None),
        ({}, {"eos_token_id": 2}, None),
        (
            {"eos_token_id": 256},
            {"eos_token_id": 2},
            "eos_token_id is 256 by Bytes and 2 by the backbone",
        ),
        (
            {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
            {"bos_token_id": 0, "eos_token_id": [3], "pad_token_id": 0},
            "bos_token_id is 1 by Bytes and 0 by the backbone; "
            "eos_token_id is 2 by Bytes and [3] by the backbone",
        ),
    ],
)
def test_other_special_tokens_are_noted(ids, config, said):
    note = special_tokens_note("Bytes", ids, config)
    assert note == (None if said is None else f"note: {said}: the tokenizer's is used")
