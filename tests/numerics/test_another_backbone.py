"""The backbone that docs/backbones.md writes in one file: exact states, saved and loaded."""

import importlib.util
import sys
from pathlib import Path

import fork_checks
import pytest
import tiny
import torch
from jsonargparse import ArgumentParser

from refine_pl.backbones import FastWeightLM, load_pretrained, save_pretrained
from refine_pl.backbones.stack import MODELS

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
POSITIONS = [[1, 4, 9], [2, 3, 8]]
LENGTHS = [15, 13]


@pytest.fixture(scope="module")
def fading(tmp_path_factory):
    block = PAGE.read_text().split("# fading.py\n")[1].split("```")[0]
    file = tmp_path_factory.mktemp("fading") / "fading.py"
    file.write_text(block)
    spec = importlib.util.spec_from_file_location("fading", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fading"] = module
    spec.loader.exec_module(module)
    yield module.Fading
    del sys.modules["fading"], MODELS["fading"]


def make(fading, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return fading(**tiny.SMALL | options).to(dtype)


@pytest.mark.parametrize("options", [{}, {"activation_checkpointing": True}], ids=str)
@pytest.mark.parametrize("copies", [1, 3])
def test_forks_equal_recomputation(fading, options, copies):
    policy = make(fading, **options)
    compared = fork_checks.check_replay(policy, LENGTHS, POSITIONS, copies)
    assert compared == 2 * len(list(policy.parameters()))
    fork_checks.check_generators(policy, LENGTHS, POSITIONS, copies)


def test_rows_continue(fading):
    policy = make(fading)
    fork_checks.check_parts(policy, total=15, cut=7, at=[0, 3, 5])
    fork_checks.check_token_by_token(policy, total=12)
    fork_checks.check_unequal_rows(policy, [9, 4, 6], [3, 5, 0])


def test_saved_and_loaded(fading, tmp_path):
    policy = make(fading, torch.float32)
    save_pretrained(policy, tmp_path)
    again = load_pretrained(str(tmp_path))
    assert type(again) is fading
    assert again.config() == policy.config()
    tokens = tiny.batch([12]).tokens
    assert torch.equal(again(tokens).hidden, policy(tokens).hidden)


def test_its_fields_are_options_of_the_command_line(fading):
    def run(backbone: FastWeightLM):
        return backbone

    parser = ArgumentParser()
    parser.add_function_arguments(run, "run")
    options = ["--run.backbone=fading.Fading", "--run.backbone.num_heads=2"]
    sizes = [f"--run.backbone.{name}={tiny.SMALL[name]}" for name in ("vocab_size", "hidden_size")]
    made = parser.instantiate(parser.parse_args([*options, *sizes])).run.backbone
    assert made.options.num_heads == 2
    assert made.hidden_size == tiny.SMALL["hidden_size"]
