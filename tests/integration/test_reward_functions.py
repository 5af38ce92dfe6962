"""A run with a function as a reward; and whoever resumes it must name the function again."""

import shutil
import sys

import pytest
import torch
import yaml
from command_line import GONE, resolved, run, write_config, write_documents

from refine_pl.rewards import ExactMatch, FromFunction
from refine_pl.training.module import RefineModule

FUNCTION = "own_reward_functions.vowels"
REWARDS = {
    "match": {"class_path": "refine_pl.rewards.ExactMatch"},
    "vowels": {
        "class_path": "refine_pl.rewards.FromFunction",
        "init_args": {"function": FUNCTION, "weight": 2.0},
    },
}
KEY = "model.rewards.vowels.init_args.function"


MODULE = (
    "calls = []\n"
    "def vowels(rollouts, targets):\n"
    "    calls.append(len(rollouts))\n"
    "    return [sum(c in 'aeiou' for c in text) / 3 for text in rollouts]\n"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the checkpoint of a run whose reward is a function."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "own_reward_functions.py").write_text(MODULE)
        write_documents(folder / "docs")
        write_config(folder / "own.yaml", {"model.rewards": REWARDS})
        write_config(folder / "data.yaml", {"model.rewards": GONE})
        outcome = run("fit", "--config", "own.yaml")
    assert outcome.code == 0, outcome.stderr
    assert sum(sys.modules.pop("own_reward_functions").calls) > 0
    (checkpoint,) = folder.glob("runs/**/last.ckpt")
    checkpoint.rename(folder / "run.ckpt")
    stored = torch.load(folder / "run.ckpt", weights_only=True)["hyper_parameters"]["rewards"]
    assert stored["vowels"]["init_args"]["function"] == FUNCTION
    return folder


@pytest.fixture
def workplace(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own_reward_functions", None)


def fit(*options):
    return run("fit", "--config", "data.yaml", "--ckpt_path", "run.ckpt", *options)


def test_a_checkpoint_alone_calls_no_function(workplace):
    for options in ((), ("--model.rewards.vowels.weight", "0.5")):
        outcome = fit(*options)
        assert outcome.code == 2
        said = " ".join(outcome.stderr.split())
        assert f"{KEY} is {FUNCTION}, which only the checkpoint names" in said
        assert f"give it in your configuration, if you trust it: --{KEY} {FUNCTION}" in said
    assert "own_reward_functions" not in sys.modules, "not even imported"


NAMED = {"class_path": "FromFunction", "init_args": {"function": "os.system"}}
HIDDEN = {
    "short": {"other": NAMED},
    "another path": {
        "other": NAMED | {"class_path": "refine_pl.rewards.from_function.FromFunction"}
    },
    "inside": {
        "sum": {
            "class_path": "refine_pl.rewards.WeightedSum",
            "init_args": {"rewards": {"inner": NAMED}},
        }
    },
    "text": "{other: {class_path: FromFunction, init_args: {function: os.system}}}",
}


@pytest.mark.parametrize("rewards", HIDDEN.values(), ids=HIDDEN)
def test_nor_when_the_checkpoint_hides_it(workplace, rewards):
    content = torch.load("run.ckpt", weights_only=True)
    content["hyper_parameters"]["rewards"] = rewards
    torch.save(content, "run.ckpt")
    outcome = fit()
    assert outcome.code == 2
    said = " ".join(outcome.stderr.split())
    assert "function is os.system, which only the checkpoint names" in said


def test_nor_does_loading_it_in_python(workplace, monkeypatch):
    monkeypatch.syspath_prepend(workplace)
    with pytest.raises(Exception, match=r"names own_reward_functions\.vowels as a reward function"):
        RefineModule.load_from_checkpoint("run.ckpt")
    assert "own_reward_functions" not in sys.modules
    rewards = {"vowels": FromFunction(FUNCTION, weight=3.0)}
    model = RefineModule.load_from_checkpoint("run.ckpt", rewards=rewards)
    assert model.refine_step.reward.parts()["vowels"].weight == 3.0
    assert RefineModule.load_from_checkpoint("run.ckpt", rewards={"match": ExactMatch()})


def test_another_function_than_that_of_the_configuration_is_refused(workplace):
    """What the user wrote must be that name, not one that it is a part of."""
    content = torch.load("run.ckpt", weights_only=True)
    content["hyper_parameters"]["rewards"]["other"] = REWARDS["vowels"] | {
        "init_args": {"function": "own_reward_functions.vow"}
    }
    torch.save(content, "run.ckpt")
    outcome = fit(f"--{KEY}", FUNCTION)
    assert outcome.code == 2
    assert "model.rewards.other.init_args.function is own_reward_functions.vow" in outcome.stderr


@pytest.mark.parametrize("how", ["option", "short option", "file", "files", "left out"])
def test_the_users_configuration_can(workplace, how):
    (workplace / "rewards.yaml").write_text(yaml.safe_dump({"model": {"rewards": REWARDS}}))
    (workplace / "parts").mkdir()
    (workplace / "parts" / "model.yaml").write_text(yaml.safe_dump({"rewards": REWARDS}))
    only_match = {"model": {"rewards": {"match": REWARDS["match"]}}}
    (workplace / "match.yaml").write_text(yaml.safe_dump(only_match))
    options = {
        "option": [f"--{KEY}", FUNCTION],
        "short option": ["--model.rewards.vowels.function=" + FUNCTION],
        "file": ["--config", "rewards.yaml"],
        "files": ["--model", "parts/model.yaml"],
        "left out": ["--config", "match.yaml"],
    }[how]
    config = resolved("fit", "--config", "data.yaml", "--ckpt_path", "run.ckpt", *options)
    rewards = config["model"]["rewards"]
    assert ("vowels" in rewards) == (how != "left out")
    outcome = fit(*options, "--trainer.max_epochs", "2")
    assert outcome.code == 0, outcome.stderr
    if how != "left out":
        assert rewards["vowels"]["init_args"] == {
            "function": FUNCTION,
            "reads": "texts",
            "weight": 2.0,
            "on_error": "stop",
        }
        assert sum(sys.modules["own_reward_functions"].calls) > 0


def test_a_function_that_is_not_there_is_said_before_the_run(workplace):
    outcome = run("fit", "--config", "own.yaml", f"--{KEY}", "own_reward_functions.vowel")
    assert outcome.code == 2
    assert "own_reward_functions has no vowel" in outcome.stderr
    assert "did you mean own_reward_functions.vowels?" in outcome.stderr
