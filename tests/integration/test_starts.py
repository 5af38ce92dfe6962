"""The starts that come with the package: made by the recipes as they are now, and whole."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from refine_pl.checksums import read_checksums, sha256_of

ROOT = Path(__file__).parents[2]
STARTS = ROOT / "configs" / "starts"
NAMES = sorted(path.name for path in STARTS.iterdir() if path.is_dir())


def recipe_hash(text):
    """Of what a recipe sets, whatever its comments say."""
    settings = json.dumps(yaml.safe_load(text), sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()


def test_all_are_checked():
    assert NAMES == ["tiny"]
    assert all(f"| `{name}` |" in (STARTS / "README.md").read_text() for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_start_was_made_by_the_recipe_as_it_is(name):
    """If this fails, make the start anew as its README says, and put the new hash beside it."""
    made_by = json.loads((STARTS / name / "recipe.json").read_text())
    recipe = (ROOT / "configs" / f"{made_by['recipe']}.yaml").read_text()
    assert made_by["sha256"] == recipe_hash(recipe)
    assert recipe_hash(f"# another comment\n{recipe}") == made_by["sha256"]
    changed = recipe.replace("iterations: 100", "iterations: 101")
    assert changed != recipe
    assert recipe_hash(changed) != made_by["sha256"]


@pytest.mark.parametrize("name", NAMES)
def test_a_start_is_whole(name):
    digests = read_checksums(STARTS / name)
    assert set(digests) == {"config.json", "model.safetensors", "recipe.json"}
    for file, digest in digests.items():
        assert sha256_of(STARTS / name / file) == digest
