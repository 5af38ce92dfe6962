"""Two processes answer what one process answers, also when one of them has no batch left."""

import json
import subprocess
import sys

import command_line
import evaluations
import pytest
import torch
from processes import run_processes

from refine_pl.backbones import DeltaNet, save_pretrained

pytestmark = pytest.mark.distributed


WORDS = ("--config", "eval.yaml", "--model.pretrained", "model", "--trainer.accelerator", "cpu")


def run(folder, *options):
    """One process, which starts the others."""
    found = subprocess.run(
        [sys.executable, "-m", "refine_pl", "test", *WORDS, *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found


def test_two_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    policy = DeltaNet(
        vocab_size=257,
        hidden_size=16,
        num_hidden_layers=1,
        num_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
    )
    save_pretrained(policy, tmp_path / "model")
    evaluations.save_byte_tokenizer(tmp_path / "model")
    evaluations.write_rows(tmp_path / "rows.jsonl", evaluations.rows(7))
    evaluations.config(tmp_path / "eval.yaml")
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    outcome = command_line.run("test", *WORDS, "--out", "one")
    assert outcome.code == 0, outcome.stderr
    outcome = run(tmp_path, *two)
    assert outcome.stdout.count("run folder") == 1
    (folder,) = (tmp_path / "runs" / "test" / "eval").iterdir()  # both found the same free number
    whole = (tmp_path / "one" / "answers.jsonl").read_bytes()
    answers = folder / "answers.jsonl"
    assert answers.read_bytes() == whole
    scores = [f / "scores.json" for f in (folder, tmp_path / "one")]
    assert scores[0].read_bytes() == scores[1].read_bytes()
    assert not list(folder.glob("answers.rank*"))
    assert json.loads((folder / "card.json").read_text())["processes"] == 2

    # Seven rows are four batches. One is missing: the second process has nothing to do.
    lines = answers.read_text().splitlines(keepends=True)
    answers.write_text("".join(lines[:2] + lines[4:6]))
    (folder / "answers.rank1.jsonl").write_text(lines[6])
    words = [*WORDS, "--out", str(folder), *two]
    first, _ = run_processes(evaluations.answer, 2, tmp_path, *words)
    assert "continuing: 5 of 7" in first
    assert answers.read_bytes() == whole
