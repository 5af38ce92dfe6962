"""The arms of the evidence: each changes what its name says, and nothing that arms share."""

from pathlib import Path

import pytest
import yaml

from refine_pl.commands.resolved import resolve
from refine_pl.comparison.arms import find_arms
from refine_pl.comparison.cost import times_plain_run
from refine_pl.sweep.overlays import changes, flatten
from refine_pl.training.run_folder import stages_of

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPE = CONFIGS / "tiny_compare.yaml"
FILES = sorted((CONFIGS / "evidence").glob("*.yaml"))
# What an arm has in place of the recipe's, and what its update costs in plain ones.
SPARSE = {"selector", "rollouts_per_position"}  # 8 segments are what there is unless told
ARMS = {
    "published": ({*SPARSE, "rewards", "policy_weight"}, 1.09),
    "exact_match": (SPARSE, 1.71),
    "uniform": (SPARSE, 1.71),
    "hybrid": ({*SPARSE, "rewards"}, 1.71),
    "random": ({"selector", "num_segments"}, 3.83),
    "longer": ({"selector", "rollout_length"}, 5.61),
    "log_likelihood": ({"rewards"}, 3.61),
    "kl": ({"kl_weight"}, 4.56),
    "low_lr": ({"ramp"}, 3.61),
    "sft_low_lr": ({"ramp", "policy_weight"}, 1.0),
}


@pytest.fixture(scope="module")
def base():
    return resolve(["fit", "--config", str(RECIPE)])


def test_all_are_checked():
    assert {file.stem for file in FILES} == set(ARMS)
    found = find_arms(["refine", str(CONFIGS / "evidence")], str(RECIPE))
    assert len(found) == len(ARMS) + 1


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_arm_changes_what_it_says(file, base):
    told, cost = ARMS[file.stem]
    resolved = resolve(["fit", "--config", str(RECIPE), "--config", str(file)])
    different = {key for key in changes(base, resolved) if not key.startswith("trainer.logger")}
    parts = {key.removeprefix("model.").partition(".")[0] for key in different}
    parts |= {"ramp"} if any(".ramp" in key for key in different) else set()
    assert parts - {"schedule"} == told
    assert times_plain_run(resolved) == pytest.approx(cost, abs=0.01)
    lengths = [[s["iterations"] for s in stages_of(c).values()] for c in (base, resolved)]
    assert lengths[0] == lengths[1]
    assert set(dict(flatten(yaml.safe_load(file.read_text()))))  # it sets something itself
