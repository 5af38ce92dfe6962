"""Who wins: defaults < checkpoint < --config, in order < options."""

import pickle
import shutil
import sys

import pytest
import torch
import yaml
from command_line import resolved, run, write_config, write_documents

# What the class itself says when nobody else does.
CLASS_DEFAULTS = {"num_segments": 8, "rollout_length": 5, "policy_weight": 0.2, "ntp_weight": 1.0}


def hyper_parameters(**changes):
    """What Lightning stores for a run of the command line, shortened."""
    return {
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
        "backbone": {
            "class_path": "refine_pl.backbones.DeltaNet",
            "init_args": {"vocab_size": 257, "hidden_size": 32, "num_heads": 2},
        },
        "selector": {
            "class_path": "refine_pl.selectors.Entropy",
            "init_args": {"min_prefix": 7, "min_suffix": 9},
        },
        "rewards": {
            "exact": {"class_path": "refine_pl.rewards.ExactMatch", "init_args": {"weight": 0.5}},
            "mine": {
                "class_path": "refine_pl.rewards.EmbeddingSimilarity",
                "init_args": {"weight": 0.3},
            },
        },
        "num_segments": 3,
        "rollout_length": 3,
        "policy_weight": 0.3,
    } | changes


def write_checkpoint(path, **changes):
    content = {
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {},
        "hyper_parameters": hyper_parameters(),
    }
    torch.save(content | changes, path)
    return path


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "docs")
    write_checkpoint(tmp_path / "run.ckpt")
    write_config(tmp_path / "full.yaml")
    data = yaml.safe_load((tmp_path / "full.yaml").read_text())["data"]
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"data": data}))
    return tmp_path


def weights(config):
    return {
        name: reward["init_args"]["weight"] for name, reward in config["model"]["rewards"].items()
    }


def test_the_checkpoint_gives_what_nobody_else_does(workplace):
    model = resolved("fit", "--config", "data.yaml", "--ckpt_path", "run.ckpt")["model"]
    assert model["num_segments"] == 3
    assert model["policy_weight"] == 0.3
    assert model["backbone"]["init_args"]["hidden_size"] == 32
    assert model["selector"]["init_args"]["min_prefix"] == 7
    assert model["ntp_weight"] == CLASS_DEFAULTS["ntp_weight"]  # not in the checkpoint either


def test_a_configuration_beats_the_checkpoint(workplace):
    (workplace / "over.yaml").write_text(
        "model:\n  num_segments: 4\n  selector: {init_args: {min_prefix: 6}}\n"
    )
    model = resolved(
        "fit", "--config", "data.yaml", "--config", "over.yaml", "--ckpt_path=run.ckpt"
    )["model"]
    assert model["num_segments"] == 4
    assert model["rollout_length"] == 3
    assert model["selector"]["init_args"]["min_prefix"] == 6
    assert model["selector"]["init_args"]["min_suffix"] == 9


def test_a_value_of_the_configuration_that_is_the_default_beats_the_checkpoint(workplace):
    (workplace / "over.yaml").write_text("model:\n  num_segments: 8\n")
    model = resolved(
        "fit", "--config", "data.yaml", "--config", "over.yaml", "--ckpt_path", "run.ckpt"
    )["model"]
    assert model["num_segments"] == CLASS_DEFAULTS["num_segments"] == 8


def test_an_option_beats_both(workplace):
    (workplace / "over.yaml").write_text("model:\n  num_segments: 4\n  rollout_length: 4\n")
    options = ["--model.num_segments", "5", "--model.selector.init_args.min_prefix", "2"]
    model = resolved(
        "fit", "--config", "data.yaml", "--config", "over.yaml", *options, "--ckpt_path", "run.ckpt"
    )["model"]
    assert model["num_segments"] == 5
    assert model["rollout_length"] == 4
    assert model["policy_weight"] == 0.3
    assert model["selector"]["init_args"]["min_prefix"] == 2
    assert model["selector"]["init_args"]["min_suffix"] == 9


def test_without_a_checkpoint_the_class_says(workplace):
    model = resolved("fit", "--config", "full.yaml", "--model.rollout_length", "4")["model"]
    assert model["policy_weight"] == CLASS_DEFAULTS["policy_weight"]
    assert model["num_segments"] == 2
    assert model["rollout_length"] == 4


def test_the_path_of_the_checkpoint_may_come_from_a_configuration(workplace):
    (workplace / "resume.yaml").write_text("ckpt_path: run.ckpt\n")
    config = resolved("fit", "--config", "data.yaml", "--config", "resume.yaml")
    assert config["model"]["num_segments"] == 3
    assert config["ckpt_path"] == "run.ckpt"


def test_another_class_does_not_inherit_the_arguments_of_the_checkpoints(workplace):
    model = resolved(
        "fit", "--config", "data.yaml", "--ckpt_path", "run.ckpt", "--model.selector", "Fixed",
        "--model.selector.stride", "4",
    )["model"]  # fmt: skip
    assert model["selector"]["class_path"] == "refine_pl.selectors.Fixed"
    assert model["selector"]["init_args"]["stride"] == 4


@pytest.mark.parametrize("name", ["mine.init_args.weight", "mine.weight"])
def test_one_reward_of_the_checkpoint_can_be_turned_off(workplace, name):
    config = resolved(
        "fit", "--config", "data.yaml", "--ckpt_path", "run.ckpt", f"--model.rewards.{name}", "0"
    )
    assert weights(config) == {"exact": 0.5, "mine": 0}


@pytest.mark.parametrize("name", ["mine.init_args.weight", "mine.weight"])
def test_one_reward_of_a_configuration_can_be_turned_off(workplace, name):
    config = resolved("fit", "--config", "full.yaml", f"--model.rewards.{name}", "0")
    assert weights(config) == {"exact": 0.5, "mine": 0}


def test_a_second_configuration_replaces_a_dict_and_merges_the_rest(workplace):
    (workplace / "over.yaml").write_text(
        "model:\n"
        "  selector: {init_args: {min_prefix: 3}}\n"
        "  rewards: {only: {class_path: refine_pl.rewards.EditDistance}}\n"
    )
    config = resolved("fit", "--config", "full.yaml", "--config", "over.yaml")
    assert list(config["model"]["rewards"]) == ["only"]
    assert config["model"]["selector"]["init_args"]["min_prefix"] == 3
    assert config["model"]["selector"]["init_args"]["min_suffix"] == 4


def test_hyper_parameters_that_are_not_known_any_more_are_named(workplace):
    write_checkpoint(workplace / "old.ckpt", hyper_parameters=hyper_parameters(num_slices=3))
    with pytest.warns(UserWarning, match="left out: num_slices"):
        resolved("fit", "--config", "data.yaml", "--ckpt_path", "old.ckpt")


def test_defaults_of_the_trainer(workplace):
    trainer = resolved("fit", "--config", "full.yaml")["trainer"]
    assert trainer["use_distributed_sampler"] is False
    assert trainer["num_sanity_val_steps"] == 0
    assert trainer["logger"]["init_args"]["save_dir"] == "runs"


def test_the_seed_is_set_by_default_and_by_the_configuration(workplace):
    assert resolved("fit", "--config", "full.yaml")["seed_everything"] == 0
    assert (
        resolved("fit", "--config", "full.yaml", "--seed_everything", "7")["seed_everything"] == 7
    )


def test_a_class_of_ones_own_is_found_in_the_working_directory(workplace, monkeypatch):
    monkeypatch.delitem(sys.modules, "cli_precedence_rewards", raising=False)
    (workplace / "cli_precedence_rewards.py").write_text(
        "from refine_pl.rewards import Reward\n"
        "class Mine(Reward):\n"
        "    def score(self, rollouts):\n"
        "        return rollouts.old_logprobs.mean(-1)\n"
    )
    config = resolved(
        "fit", "--config", "full.yaml", "--model.rewards",
        "{own: {class_path: cli_precedence_rewards.Mine, init_args: {weight: 2}}}",
    )  # fmt: skip
    assert weights(config) == {"own": 2}


class Code:
    """Something that a checkpoint must not hold."""

    def __reduce__(self):
        return print, ("loaded",)


def damaged(kind, folder):
    path = folder / f"{kind}.ckpt"
    if kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": {}}))
    elif kind == "truncated":
        path.write_bytes((folder / "run.ckpt").read_bytes()[:-100])
    elif kind == "code":
        write_checkpoint(path, hyper_parameters=hyper_parameters(selector=Code()))
    elif kind == "weights":
        torch.save({"model.weight": torch.zeros(2)}, path)
    elif kind == "run.ckpy":
        return folder / kind
    elif kind == "no_folder":
        return folder / kind / "run.ckpt"
    elif kind == "unknown_class":
        changed = hyper_parameters(selector={"class_path": "refine_pl.selectors.Gone"})
        write_checkpoint(path, hyper_parameters=changed)
    return path


REFUSED = {
    "text": "text.ckpt is not a checkpoint, or is incomplete",
    "pickle": "pickle.ckpt is not a checkpoint, or is incomplete",
    "truncated": "truncated.ckpt is not a checkpoint, or is incomplete",
    "code": "more than tensors and plain values",
    "weights": "weights.ckpt is not a checkpoint of a training run",
    "run.ckpy": "run.ckpt?",
    "no_folder": "there is no folder",
    "unknown_class": "module 'refine_pl.selectors' has no attribute 'Gone'",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_checkpoint_that_cannot_be_used(workplace, kind):
    path = damaged(kind, workplace).relative_to(workplace)
    outcome = run("fit", "--config", "data.yaml", "--ckpt_path", path)
    assert outcome.code == 2
    assert REFUSED[kind] in " ".join(outcome.stderr.split())
    assert "Traceback" not in outcome.stderr
    assert "loaded" not in outcome.stdout
    assert len(outcome.stderr.splitlines()) <= 12
    assert not (workplace / "runs").exists()


def test_resume_of_a_real_run(workplace):
    """The saved configuration shows who won, and a checkpoint of another model is refused."""
    short = ["--trainer.limit_train_batches", "1"]
    assert run("fit", "--config", "full.yaml", *short).code == 0
    (checkpoint,) = workplace.rglob("last.ckpt")
    checkpoint = shutil.copy(checkpoint, workplace / "copy.ckpt")

    outcome = run(
        "fit", "--config", "data.yaml", "--ckpt_path", checkpoint, "--model.num_segments", "3",
        "--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false", *short,
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    saved = sorted(workplace.rglob("config.yaml"), key=lambda path: path.stat().st_mtime)
    assert len(saved) == 2
    first, second = (yaml.safe_load(path.read_text())["model"] for path in saved)
    assert first["num_segments"] == 2
    assert second["num_segments"] == 3
    assert second["selector"] == first["selector"]
    assert second["rewards"] == first["rewards"]

    outcome = run(
        "fit", "--config", "data.yaml", "--ckpt_path", checkpoint,
        "--model.backbone.hidden_size", "32",
    )  # fmt: skip
    assert outcome.code == 2
    assert "the checkpoint does not fit this DeltaNet" in outcome.stderr

    outcome = run("validate", "--config", "data.yaml", "--ckpt_path", checkpoint)
    assert outcome.code == 0, outcome.stderr


def test_the_state_of_the_generators_is_always_saved(workplace):
    assert run("fit", "--config", "full.yaml", "--trainer.limit_train_batches", "1").code == 0
    (path,) = workplace.rglob("last.ckpt")
    callbacks = torch.load(path, weights_only=True)["callbacks"]
    assert [name for name in callbacks if "RandomState" in name]


def test_the_state_of_the_generators_may_also_be_listed(workplace):
    listed = ["--trainer.callbacks+", "refine_pl.callbacks.RandomState"]
    short = ["--trainer.limit_train_batches", "1"]
    assert run("fit", "--config", "full.yaml", *listed, *short).code == 0
