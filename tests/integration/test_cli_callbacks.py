"""Callbacks with keys of their own, named stages, and defaults of classes that are exchanged."""

import inspect

import pytest
import torch
import yaml
from command_line import GONE, resolved, run, write_config, write_documents
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar

from refine_pl import callbacks
from refine_pl.commands import evaluating, lightning_cli
from refine_pl.commands.callback_keys import (
    TRAINING_KEYS,
    evaluation_callbacks,
    training_callbacks,
)
from refine_pl.training import PostTraining, Schedule, TestTimeTraining

DEFAULTS = {
    "throughput": callbacks.Throughput,
    "progress": callbacks.ProgressBar,
    "recorder": callbacks.RolloutRecorder,
    "random_state": callbacks.RandomState,
    "summary": callbacks.RunSummary,
    "checkpoint": ModelCheckpoint,
}
STAGES = {
    "warm-up": {"iterations": 3, "policy_weight": 0.0, "ramp": {"lr": [0.1, 0.2]}},
    "refine": {"iterations": 2},
}
PLAIN = {"trainer.callbacks": GONE, "trainer.enable_progress_bar": GONE, "recorder": GONE}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "docs")
    write_config(tmp_path / "plain.yaml", PLAIN)
    write_config(tmp_path / "staged.yaml", PLAIN | {"schedule": {"stages": STAGES}})
    return tmp_path


@pytest.fixture
def built(workplace, monkeypatch):
    """A function that makes everything of a run, without running it; returns its callbacks."""

    def build(*argv, command="fit", file="plain.yaml"):
        made = []
        for cli in (lightning_cli.RefineCLI, evaluating.EvaluationCLI):
            monkeypatch.setattr(cli, "_run_subcommand", lambda self, _: made.append(self))
        outcome = run(command, "--config", file, *argv)
        assert outcome.code == 0, outcome.stderr
        return made[0].trainer.callbacks

    return build


def kinds(found):
    """The classes of the callbacks that have keys, once for each callback."""
    wanted = (*DEFAULTS.values(), PostTraining, TestTimeTraining, Schedule, RichProgressBar)
    return sorted(type(c).__name__ for c in found if isinstance(c, wanted))


def names(*left_out, also=()):
    classes = [cls for key, cls in DEFAULTS.items() if key not in left_out]
    return sorted(cls.__name__ for cls in (*classes, *also))


def test_every_key_has_a_line_of_help():
    for function in (training_callbacks, evaluation_callbacks):
        text = inspect.getdoc(function)
        for key in inspect.signature(function).parameters:
            assert f"\n    {key}: " in text
    assert set(TRAINING_KEYS) == {*DEFAULTS, "phase", "schedule"}


def test_they_are_there_by_default(built):
    assert kinds(built()) == names()


@pytest.mark.parametrize("key", DEFAULTS)
def test_each_can_be_turned_off(built, workplace, key):
    (workplace / "off.yaml").write_text(f"{key}: false\n")
    assert kinds(built("--config", "off.yaml")) == names(key)


def test_an_option_turns_one_off_and_on_again(built, workplace):
    assert kinds(built("--summary", "false", "--recorder=false")) == names("summary", "recorder")
    (workplace / "off.yaml").write_text("checkpoint: false\n")
    found = built("--config", "off.yaml", "--checkpoint", "true")
    (checkpoint,) = [c for c in found if isinstance(c, ModelCheckpoint)]
    assert (checkpoint.filename, checkpoint.save_top_k) == ("{step}", -1)


@pytest.mark.parametrize(
    ("switch", "key"), [("enable_progress_bar", "progress"), ("enable_checkpointing", "checkpoint")]
)
def test_a_switch_of_the_trainer_turns_one_off(built, switch, key):
    assert kinds(built(f"--trainer.{switch}", "false")) == names(key)


def test_a_key_names_only_what_it_changes(built, workplace):
    (workplace / "some.yaml").write_text(
        "recorder: {num_rows: 2}\ncheckpoint: {save_last: link, every_n_train_steps: 4}\n"
    )
    found = built("--config", "some.yaml", "--recorder.every_n_iterations", "3")
    (recorder,) = [c for c in found if isinstance(c, callbacks.RolloutRecorder)]
    assert (recorder.num_rows, recorder.every_n_iterations) == (2, 3)
    (checkpoint,) = [c for c in found if isinstance(c, ModelCheckpoint)]
    assert (checkpoint.filename, checkpoint.save_last) == ("{step}", "link")
    assert checkpoint._every_n_train_steps == 4


def test_one_in_the_list_of_callbacks_replaces_the_default(built, workplace):
    (workplace / "list.yaml").write_text(
        "trainer:\n  callbacks:\n"
        "    - {class_path: refine_pl.callbacks.RunSummary}\n"
        "    - {class_path: lightning.pytorch.callbacks.RichProgressBar}\n"
        "    - {class_path: lightning.pytorch.callbacks.LearningRateMonitor}\n"
    )
    found = built("--config", "list.yaml")
    assert kinds(found) == names("progress", also=[RichProgressBar])


def test_validate_takes_the_same_keys(built):
    assert kinds(built("--recorder", "false", command="validate")) == names("recorder")


def test_defaults_of_the_trainer_suit_a_recipe(workplace):
    trainer = resolved("fit", "--config", "plain.yaml", "--trainer.max_epochs", "null")["trainer"]
    assert trainer["devices"] == trainer["log_every_n_steps"] == 1
    assert trainer["enable_model_summary"] is False
    assert trainer["logger"]["init_args"]["name"] == "plain"  # runs/plain/version_0
    assert trainer["max_epochs"] is None
    short = resolved("fit", "--config", "plain.yaml", "--config", "staged.yaml")["trainer"]
    assert short["logger"]["init_args"]["name"] == "plain"
    assert short["max_epochs"] == 1  # as the files say


def test_a_schedule_runs_to_its_end(workplace):
    config = yaml.safe_load((workplace / "staged.yaml").read_text())
    del config["trainer"]["max_epochs"]
    (workplace / "long.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert resolved("fit", "--config", "long.yaml")["trainer"]["max_epochs"] == -1
    outcome = run("fit", "--config", "long.yaml")
    assert outcome.code == 0, outcome.stderr
    assert "stage 'refine', 2 iterations" in outcome.stdout
    assert "run folder" in outcome.stdout


# Phases --------------------------------------------------------------------------------------


def test_no_phase_unless_one_is_given(built):
    assert resolved("fit", "--config", "plain.yaml")["phase"] is None
    found = built("--phase", "PostTraining", "--phase.mode", "nested_sft")
    (phase,) = [c for c in found if isinstance(c, PostTraining)]
    assert phase.mode == "nested_sft"


def test_a_phase_of_a_recipe_may_be_changed_or_left_out(workplace):
    (workplace / "post.yaml").write_text(
        "phase: {class_path: refine_pl.training.PostTraining, init_args: {mode: sft}}\n"
    )
    files = ["fit", "--config", "plain.yaml", "--config", "post.yaml"]
    assert resolved(*files, "--phase.mode", "nested_sft")["phase"]["init_args"]["mode"] == (
        "nested_sft"
    )
    assert resolved(*files, "--phase", "null")["phase"] is None


def test_keys_of_an_evaluation(built, workplace):
    rows = {
        "class_path": "refine_pl.data.NeedleInAHaystack",
        "init_args": {"kind": "single", "lengths": [128]},
    }
    data = {
        "class_path": "refine_pl.data.TaskData",
        "init_args": {
            "tokenizer": {"class_path": "refine_pl.data.Bytes"},
            "test": {"needles": rows},
        },
    }
    config = yaml.safe_load((workplace / "plain.yaml").read_text())
    config = {"model": config["model"], "data": data, "evaluation": {"resamples": 7}}
    (workplace / "ask.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    options = ["--phase", "TestTimeTraining", "--phase.reset", "never", "--progress", "false"]
    found = built(*options, command="test", file="ask.yaml")
    (evaluation,) = [c for c in found if isinstance(c, callbacks.Evaluation)]
    assert (evaluation.name, evaluation.resamples) == ("ask", 7)
    assert [c.reset for c in found if isinstance(c, TestTimeTraining)] == ["never"]
    assert not [c for c in found if isinstance(c, callbacks.ProgressBar)]
    refused = run("test", "--config", "ask.yaml", "--evaluation", "false")
    assert refused.code == 2
    assert "Traceback" not in refused.stderr


# Stages --------------------------------------------------------------------------------------


def stages(*options):
    return resolved("fit", "--config", "staged.yaml", *options)["schedule"]["init_args"]["stages"]


def test_stages_keep_their_order(workplace):
    assert list(stages()) == ["warm-up", "refine"]
    assert list(stages("--schedule.stages.warm-up.iterations", "9")) == ["warm-up", "refine"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("prefix", ["schedule.stages", "schedule.init_args.stages"])
def test_one_option_changes_one_number(workplace, stage, prefix):
    before, after = stages(), stages(f"--{prefix}.{stage}.iterations", "9")
    assert after[stage].pop("iterations") == 9
    assert before[stage].pop("iterations") == STAGES[stage]["iterations"]
    assert after == before


def test_one_option_changes_one_ramp(workplace):
    after = stages(
        "--schedule.stages.warm-up.ramp.policy_weight=[0,0.2]",
        "--schedule.stages.warm-up.ramp.lr", "[0.1, 0.3]",
        "--schedule.stages.refine.ramp.selector.selection_temperature", "[2, 0.5]",
    )  # fmt: skip
    assert after["warm-up"]["ramp"] == {"lr": [0.1, 0.3], "policy_weight": [0.0, 0.2]}
    assert after["refine"]["ramp"] == {"selector.selection_temperature": [2.0, 0.5]}


def test_a_second_file_replaces_the_stages(workplace):
    (workplace / "one.yaml").write_text("schedule: {stages: {only: {iterations: 1}}}\n")
    assert list(stages("--config", "one.yaml")) == ["only"]


def test_a_schedule_can_be_left_out(workplace):
    assert resolved("fit", "--config", "staged.yaml", "--schedule", "null")["schedule"] is None


LR = "--model.optimizer.lr"
RATES = [  # options, and whether they are refused
    ([LR, "0.05"], False),  # the second stage takes it
    ([LR, "0.05", "--schedule.stages.refine.lr", "0.1"], True),
    (["--schedule.stages.refine.ramp.lr", "[0.1, 0.2]", LR, "0.05"], True),
    (["--schedule.stages.refine.lr", "0.1"], False),
    (["--schedule.stages.refine.lr", "0.1", "--config", "rate.yaml"], True),
    (["--config", "rate.yaml", "--schedule.stages.refine.lr", "0.1"], False),
    (["--config", "all.yaml"], False),
    (["--config", "all.yaml", "--config", "rate.yaml"], True),
    (["--config", "rate.yaml", "--config", "all.yaml"], False),
    (["--config", "both.yaml"], False),  # as a saved configuration has it
    (["--config", "all.yaml", LR, "0.05", "--schedule", "null"], False),
]


@pytest.mark.parametrize(("options", "refused"), RATES)
def test_a_learning_rate_is_never_ignored(workplace, monkeypatch, options, refused):
    rate = {"model": {"optimizer": {"init_args": {"lr": 0.5}}}}
    every = {"schedule": {"stages": {"a": {"iterations": 1, "ramp": {"lr": [0.1, 0.2]}}}}}
    for name, content in {"rate": rate, "all": every, "both": rate | every}.items():
        (workplace / f"{name}.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(lightning_cli.RefineCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(lightning_cli.RefineCLI, "_run_subcommand", lambda self, _: None)
    outcome = run("fit", "--config", "staged.yaml", *options)
    assert outcome.code == (2 if refused else 0), outcome.stderr
    if refused:
        text = " ".join(outcome.stderr.split())
        assert "model.optimizer.lr would have no effect" in text
        assert "schedule.stages" in text
        assert "way out: give it to the stages: --schedule.stages." in text


# Classes -------------------------------------------------------------------------------------


# A slot, another class than the default or the file's, and what must be its own default.
EXCHANGED = [
    ("model.optimizer", "torch.optim.Adam", {"weight_decay": 0, "lr": 1e-3}),
    ("model.optimizer", "SGD", {"weight_decay": 0, "lr": 1e-3}),
    ("model.selector", "refine_pl.selectors.Random", {"min_prefix": 20, "min_suffix": 20}),
    ("model.selector", "Fixed", {"min_prefix": 20, "min_suffix": 20}),
    ("model.backbone", "refine_pl.backbones.GatedDeltaNet", {"hidden_size": 2048}),
    ("model.advantage", "refine_pl.advantages.LeaveOneOut", {"group_by": "auto"}),
    ("model.rewards.mine", "refine_pl.rewards.ExactMatch", {"weight": 1.0}),
    ("data.init_args.corpus", "refine_pl.data.StandardLibrary", {"min_bytes": 0}),
]
SPOILT = {
    "model.optimizer.init_args": {"lr": 0.5, "weight_decay": 0.7},
    "model.advantage": {
        "class_path": "refine_pl.advantages.GroupRelative",
        "init_args": {"group_by": "position"},
    },
}


@pytest.mark.parametrize("way", ["option", "file"])
@pytest.mark.parametrize(("slot", "path", "own"), EXCHANGED)
def test_another_class_starts_from_its_own_defaults(workplace, slot, path, own, way):
    write_config(workplace / "spoilt.yaml", SPOILT)
    options = [f"--{slot}", path]
    if way == "file":
        if slot == "model.rewards.mine":  # a file replaces the whole mapping
            slot, content = "model.rewards", {"mine": {"class_path": path}}
        else:
            content = {"class_path": path}
        for part in reversed(slot.split(".")):
            content = {part: content}
        (workplace / "other.yaml").write_text(yaml.safe_dump(content))
        options = ["--config", "other.yaml"]
    found = resolved("fit", "--config", "spoilt.yaml", *options)
    for part in slot.split("."):
        found = found[part]
    found = found["mine"] if slot == "model.rewards" else found
    assert found["class_path"].endswith(path.rpartition(".")[2])
    assert {key: found["init_args"][key] for key in own} == own


def test_the_same_class_keeps_what_was_given(workplace):
    write_config(workplace / "spoilt.yaml", SPOILT)
    found = resolved(
        "fit", "--config", "spoilt.yaml", "--model.optimizer", "AdamW", "--model.selector",
        "refine_pl.selectors.entropy.Entropy", "--model.selector.offset", "1",
    )["model"]  # fmt: skip
    assert found["optimizer"]["init_args"]["weight_decay"] == 0.7
    assert found["selector"]["init_args"]["min_prefix"] == 4
    assert found["selector"]["init_args"]["offset"] == 1


def test_the_default_optimizer_lends_nothing_to_another_one(workplace):
    """The case of the first report: Adam got AdamW's weight decay."""
    write_config(workplace / "adam.yaml", {"model.optimizer": GONE})
    (workplace / "other.yaml").write_text(
        "model: {optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.01}}}\n"
    )
    found = resolved("fit", "--config", "adam.yaml", "--config", "other.yaml")["model"]["optimizer"]
    assert found["init_args"]["lr"] == 0.01
    own = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))]).defaults
    assert found["init_args"]["weight_decay"] == own["weight_decay"] == 0


def test_the_configuration_of_a_training_run_can_be_tested_with(built, workplace):
    """Its callbacks are for training: they may be named, and are not made."""
    rows = {
        "class_path": "refine_pl.data.NeedleInAHaystack",
        "init_args": {"kind": "single", "lengths": [128]},
    }
    data = {"class_path": "refine_pl.data.TaskData", "init_args": {"test": {"a": rows}}}
    (workplace / "rows.yaml").write_text(yaml.safe_dump({"data": data}))
    saved = resolved("fit", "--config", "staged.yaml")
    (workplace / "saved.yaml").write_text(yaml.safe_dump(saved, sort_keys=False))
    checkpoint = {"pytorch-lightning_version": "2.6.6", "state_dict": {}, "hyper_parameters": {}}
    checkpoint["refine_pl"] = {"tokenizer": {"class_path": "refine_pl.data.Bytes"}}
    torch.save(checkpoint, workplace / "run.ckpt")
    options = ["--config", "rows.yaml", "--ckpt_path", "run.ckpt"]
    found = built(*options, command="test", file="saved.yaml")
    assert kinds(found) == ["ModelCheckpoint", "ProgressBar"]  # the first is Lightning's own
