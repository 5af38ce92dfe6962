"""Every overlay in configs/hardware, laid over a recipe."""

import command_line
import pytest
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from recipes import CONFIGS

from refine_pl.commands import lightning_cli

STRATEGIES = {"ddp.yaml": DDPStrategy, "fsdp2.yaml": ModelParallelStrategy}


def build(monkeypatch, *options):
    made = []
    monkeypatch.setattr(
        lightning_cli.RefineCLI, "_run_subcommand", lambda self, _: made.append(self)
    )
    outcome = command_line.run("fit", "--config", CONFIGS / "tiny_mid.yaml", *options)
    assert outcome.code == 0, outcome.stderr
    return made[0].trainer


def test_all_are_known():
    assert {path.name for path in (CONFIGS / "hardware").iterdir()} == set(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_overlay(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    overlay = CONFIGS / "hardware" / name
    trainer = build(monkeypatch, "--config", overlay, "--trainer.accelerator", "cpu")
    assert type(trainer.strategy) is STRATEGIES[name]
    assert type(build(monkeypatch).strategy) is not STRATEGIES[name]


def test_a_class_without_arguments(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.accelerator", "cpu", "--trainer.strategy"]
    path = f"{ModelParallelStrategy.__module__}.{ModelParallelStrategy.__name__}"
    assert type(build(monkeypatch, *options, path).strategy) is ModelParallelStrategy
    with pytest.raises(AssertionError, match="invalid strategy name"):
        build(monkeypatch, *options, path + "s")
