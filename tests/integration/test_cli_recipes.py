"""Recipes by name, from a clone and from the installed wheel."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from command_line import resolved, run
from recipes import CONFIGS

from refine_pl.recipes import folder, recipes, title, with_paths

ROOT = CONFIGS.parent
FILES = sorted(CONFIGS.rglob("*.yaml"))


def test_every_file_has_a_name_and_a_title():
    found = recipes()
    assert len(found) == len(FILES) >= 49
    assert sorted(found.values()) == FILES
    names = list(found)
    assert [n for n in names if "/" not in n] == names[: names.index("ablations/advantage/dr_grpo")]
    assert names.index("ablations/num_segments/2") < names.index("ablations/num_segments/16")
    for path in found.values():
        assert 10 < len(title(path)) <= 100
        assert title(path).endswith((".", "?", ").")), path


def test_they_are_listed():
    outcome = run("recipes")
    assert outcome.code == 0
    lines = outcome.stdout.splitlines()
    assert len(lines) == len(FILES)
    for line, (name, path) in zip(lines, recipes().items(), strict=True):
        assert line.startswith(f"{name} ")
        assert line.endswith(title(path))


def test_one_is_printed():
    outcome = run("recipes", "ablations/reward/hybrid")
    assert outcome.code == 0
    assert outcome.stdout == (CONFIGS / "ablations/reward/hybrid.yaml").read_text()


def test_a_name_that_there_is_not():
    outcome = run("recipes", "tiny_mit")
    assert outcome.code == 2
    assert "did you mean tiny_mid?" in outcome.stderr
    outcome = run("fit", "--config", "tiny_mit")
    assert outcome.code == 2
    assert "no configuration file tiny_mit" in outcome.stderr
    assert "did you mean tiny_mid?" in outcome.stderr


def test_names_and_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny_post").write_text("model: {seed: 1}\n")
    at = str(folder())
    words = ["fit", "--config", "tiny_mid", "-c=tiny_post", "--config=eval/tiny_niah", "tiny_mid"]
    assert with_paths(words) == [
        "fit", "--config", f"{at}/tiny_mid.yaml", "-c=tiny_post",
        f"--config={at}/eval/tiny_niah.yaml", "tiny_mid",
    ]  # fmt: skip
    sweep = ["--overlays", "ablations/reward", "hardware/ddp", "mine", "--eval", "eval/ruler_qa"]
    assert with_paths(sweep) == [
        "--overlays", f"{at}/ablations/reward", f"{at}/hardware/ddp.yaml", "mine",
        "--eval", f"{at}/eval/ruler_qa.yaml",
    ]  # fmt: skip
    assert with_paths(["--config", "../configs/tiny_mid"]) == ["--config", "../configs/tiny_mid"]
    assert with_paths(["--out", "tiny_mid"]) == ["--out", "tiny_mid"]


def test_a_recipe_with_an_overlay_by_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = resolved("fit", "--config", "tiny_mid", "--config", "ablations/reward/exact_match")
    files = [CONFIGS / "tiny_mid.yaml", CONFIGS / "ablations/reward/exact_match.yaml"]
    assert named == resolved("fit", "--config", files[0], "--config", files[1])
    assert named["trainer"]["logger"]["init_args"]["name"] == "tiny_mid"


@pytest.mark.slow
def test_the_wheel_has_them(tmp_path):
    """Built, unpacked as an installer would, and run in an empty folder."""
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    shipped = site / "refine_pl/configs"
    inside = {path.relative_to(shipped) for path in shipped.rglob("*.yaml")}
    assert inside == {path.relative_to(CONFIGS) for path in FILES}
    assert not (site / "configs").exists()

    def started(*argv):
        return subprocess.run(
            [sys.executable, "-m", "refine_pl", *argv],
            capture_output=True,
            text=True,
            cwd=empty,
            env=os.environ | {"PYTHONPATH": str(site)},
            check=False,
        )

    listed = started("recipes")
    assert listed.stdout == run("recipes").stdout
    short = ["--schedule.stages.warm-up.iterations", "1", "--schedule.stages.refine.iterations=1"]
    small = ["--schedule.validate", "false", "--data.cache_dir", "cache"]
    small += ["--data.corpus.min_bytes", "50000", "--data.num_validation_documents", "3"]
    small += ["--data.sequence_length", "300"]
    trained = started("fit", "--config", "tiny_mid", *short, *small)
    assert trained.returncode == 0, trained.stderr
    run_folder = empty / "runs/tiny_mid/version_0"
    assert (run_folder / "checkpoints/last.ckpt").is_file()
    assert (run_folder / "rollouts.jsonl").is_file()
