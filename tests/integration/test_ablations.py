"""Every overlay of configs/ablations changes what it says, on any recipe, and nothing else."""

from pathlib import Path

import command_line
import pytest
import yaml

from refine_pl.sweep.overlays import changes, find_overlays, flatten

ROOT = Path(__file__).parents[2]
ABLATIONS = ROOT / "configs" / "ablations"
RECIPE = ROOT / "configs" / "tiny_mid.yaml"


def part(slot, path, **arguments):
    values = {"class_path": f"refine_pl.{path}"}
    return flat({slot: values | ({"init_args": arguments} if arguments else {})})


def rewards(**classes):
    spec = {
        name: {
            "class_path": f"refine_pl.rewards.{cls}",
            "init_args": {"weight": 1.0} | ({"exp": False} if cls == "LogLikelihood" else {}),
        }
        for name, cls in classes.items()
    }
    return flat({"rewards": spec})


def flat(values):
    return {f"model.{key}": value for key, value in flatten(values)}


def copies(number, group_by):
    return {
        "model.rollouts_per_position": number,
        "model.advantage.init_args.group_by": group_by,
    }


def baseline(steps):
    return {"model.policy_weight": 0.0, "model.kl_weight": 0.0, "model.steps": steps}


# What each overlay decides.
EXPECTED = {
    "selection/entropy": part("selector", "selectors.Entropy", selection_temperature=1.0),
    "selection/uniform": part("selector", "selectors.Random"),
    "selection/argmax": part("selector", "selectors.Extremum", mode="argmax"),
    "selection/argmin": part("selector", "selectors.Extremum", mode="argmin"),
    "reward/exact_match": rewards(match="ExactMatch"),
    "reward/log_likelihood": rewards(log_likelihood="LogLikelihood"),
    "reward/edit_distance": rewards(edit_distance="EditDistance"),
    "reward/embedding_similarity": rewards(similarity="EmbeddingSimilarity"),
    "reward/hybrid": rewards(similarity="EmbeddingSimilarity", match="ExactMatch"),
    **{f"rollout_length/{n}": {"model.rollout_length": n} for n in (1, 3, 5, 7)},
    **{f"num_segments/{n}": {"model.num_segments": n} for n in (2, 4, 8, 16, 32, 64)},
    "rollouts_per_position/1": copies(1, "sequence"),
    "rollouts_per_position/4": copies(4, "position"),
    "rollouts_per_position/8": copies(8, "position"),
    "advantage/group_relative": part(
        "advantage", "advantages.GroupRelative", normalize_std=True, ddof=1
    ),
    "advantage/dr_grpo": part("advantage", "advantages.GroupRelative", normalize_std=False),
    "advantage/leave_one_out": part("advantage", "advantages.LeaveOneOut"),
    "baseline/sft_per_minibatch": baseline("per_minibatch"),
    "baseline/sft_per_batch": baseline("per_batch"),
}

# Settings of a class that an overlay exchanges: they go with it.
OF_ONE_CLASS = {
    "model.selector.init_args.min_prefix",
    "model.advantage.init_args.group_by",
    "model.selector.init_args.selection_temperature",
    "model.selector.init_args.mode",
    "model.advantage.init_args.normalize_std",
    "model.advantage.init_args.ddof",
    "model.advantage.init_args.eps",
}

# A recipe in which nothing is as the overlays want it, and other things are not the defaults.
OTHER = {
    "seed_everything": 0,
    "model": {
        "selector": {
            "class_path": "refine_pl.selectors.Entropy",
            "init_args": {"selection_temperature": 0.5, "min_prefix": 7},
        },
        "rewards": {
            "match": {"class_path": "refine_pl.rewards.ExactMatch", "init_args": {"weight": 0.5}},
            "similarity": {"class_path": "refine_pl.rewards.LogLikelihood"},
        },
        "advantage": {
            "class_path": "refine_pl.advantages.GroupRelative",
            "init_args": {"group_by": "position", "normalize_std": False, "ddof": 0, "eps": 0.1},
        },
        "rollouts_per_position": 2,
        "kl_weight": 0.1,
        "policy_weight": 0.3,
    },
}
# Settings that a class keeps, where another class starts from its own defaults.
KEPT = {
    "selection/entropy": {"model.selector.init_args.min_prefix": 7},
    "selection/uniform": {"model.selector.init_args.min_prefix": 20},
    "advantage/group_relative": {"model.advantage.init_args.group_by": "position"},
    "advantage/leave_one_out": {"model.advantage.init_args.group_by": "auto"},
}
ON_THE_OTHER = [
    "selection/entropy",
    "selection/uniform",
    "reward/exact_match",
    "advantage/group_relative",
    "advantage/leave_one_out",
    "rollouts_per_position/4",
    "baseline/sft_per_batch",
]


@pytest.fixture(scope="module")
def recipe():
    return command_line.resolved("fit", "--config", RECIPE)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The file of the other recipe, and its settings."""
    file = tmp_path_factory.mktemp("other") / "other.yaml"
    file.write_text(yaml.safe_dump(OTHER))
    return file, command_line.resolved("fit", "--config", RECIPE, "--config", file)


def check(label, before, after):
    """``after`` is ``before`` with the overlay's settings."""
    settings, owned = dict(flatten(after)), EXPECTED[label]
    for key, value in owned.items():
        assert settings[key] == value, key
    if label.startswith("reward/"):
        own = {k for k in settings if k.startswith("model.rewards.")}
        assert {k for k in own if not k.endswith(".on_error")} == set(owned)
        owned = {key: None for key in changes(before, after) if key.startswith("model.rewards.")}
    assert set(changes(before, after)) <= set(owned) | OF_ONE_CLASS


def test_all_are_expected():
    found = [overlay.label for overlay in find_overlays([str(ABLATIONS)], "", with_base=False)]
    assert len(found) == len(set(found)) == 27
    assert set(found) == set(EXPECTED)
    assert [label for label in found if "num_segments" in label] == [
        f"num_segments/{n}" for n in (2, 4, 8, 16, 32, 64)
    ]
    for path in ABLATIONS.rglob("*.yaml"):
        assert path.read_text().startswith("# "), path


@pytest.mark.parametrize("label", EXPECTED)
def test_an_overlay_decides_what_it_says(label, recipe):
    overlay = ABLATIONS / f"{label}.yaml"
    after = command_line.resolved("fit", "--config", RECIPE, "--config", overlay)
    check(label, recipe, after)


@pytest.mark.parametrize("label", ON_THE_OTHER)
def test_an_overlay_beats_any_recipe(label, other):
    file, before = other
    overlay = ABLATIONS / f"{label}.yaml"
    after = command_line.resolved("fit", "--config", RECIPE, "--config", file, "--config", overlay)
    check(label, before, after)
    settings = dict(flatten(after))
    for key, value in KEPT.get(label, {}).items():
        assert settings[key] == value, key


def test_a_change_beside_it_would_be_noticed(recipe, other):
    _, after = other
    with pytest.raises(AssertionError):
        check("selection/entropy", recipe, after)
    with pytest.raises(AssertionError):
        check("reward/hybrid", recipe, after)


@pytest.mark.parametrize(
    "label",
    [
        "selection/argmin",
        "reward/log_likelihood",
        "rollout_length/7",
        "num_segments/4",
        "rollouts_per_position/8",
        "advantage/dr_grpo",
        "baseline/sft_per_batch",
    ],
)
def test_one_of_each_group_trains(label, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command_line.write_documents(tmp_path / "docs", number=8)
    recipe = command_line.write_config(
        tmp_path / "tiny.yaml", {"data.init_args.batch_size": 4, "model.minibatch_size": 2}
    )
    overlay = ABLATIONS / f"{label}.yaml"
    options = ["--trainer.max_steps", "2", "--data.init_args.cache_dir", "cache"]
    outcome = command_line.run("fit", "--config", recipe, "--config", overlay, *options)
    assert outcome.code == 0, outcome.stderr
    assert list(tmp_path.glob("runs/tiny/version_0/checkpoints/*step=2.ckpt"))
    assert ("no rollouts" in outcome.stdout) == label.startswith("baseline")
