"""A checkpoint names classes; none of them runs a command, or is imported for it."""

import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from command_line import GONE, run, write_config, write_documents

from refine_pl.errors import CheckpointError
from refine_pl.training.module import RefineModule

MARK = "ran"  # a file that every forbidden call would make
SPY = f"from pathlib import Path\nPath('{MARK}').touch()\nclass Reward: ...\n"
FORBIDDEN = {
    "os.system": {"command": f"touch {MARK}"},
    "subprocess.run": {"args": ["touch", MARK]},
    "subprocess.Popen": {"args": ["touch", MARK]},
    "builtins.exec": {"source": f"open('{MARK}', 'w')"},
    "shutil.rmtree": {"path": "docs"},
    "functools.partial": {"func": "os.system"},
    "refine_pl.cli.os.system": {"command": f"touch {MARK}"},
    "torch.optim.optimizer.functools.partial": {"func": "os.system"},
    "refine_pl.cli.main": {"argv": ["--version"]},
    "torch.load": {"f": "run.ckpt", "weights_only": False},
    "spy_on_imports.Reward": {},
    "spy_package.inner.Reward": {},
}
SLOTS = {
    "backbone": lambda spec: spec,
    "selector": lambda spec: spec,
    "generator": lambda spec: spec,
    "advantage": lambda spec: spec,
    "policy_loss": lambda spec: spec,
    "answering": lambda spec: spec,
    "optimizer": lambda spec: spec,
    "lr_scheduler": lambda spec: spec,
    "rewards": lambda spec: {"match": spec},
}
NESTED = {
    "lr_scheduler, in a list": (
        "lr_scheduler",
        lambda spec: {
            "class_path": "refine_pl.training.SequentialLR",
            "init_args": {"schedulers": [spec], "milestones": []},
        },
    ),
    "lr_scheduler, as an argument": (
        "lr_scheduler",
        lambda spec: {
            "class_path": "torch.optim.lr_scheduler.LambdaLR",
            "init_args": {"lr_lambda": spec},
        },
    ),
    "rewards, inside another": (
        "rewards",
        lambda spec: {
            "sum": {
                "class_path": "refine_pl.rewards.WeightedSum",
                "init_args": {"rewards": {"inner": spec}},
            }
        },
    ),
    "rewards, as text": ("rewards", lambda spec: yaml.safe_dump({"match": spec})),
}
PLACES = {slot: (slot, wrap) for slot, wrap in SLOTS.items()} | NESTED
FREE = ("backbone", "selector", "generator", "policy_loss", "answering", "optimizer")
COMMANDS = ("fit", "validate", "test", "predict")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with documents, prompts and the checkpoint of a run."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_documents(folder / "docs")
        write_config(folder / "own.yaml")
        outcome = run("fit", "--config", "own.yaml")
        assert outcome.code == 0, outcome.stderr
        (checkpoint,) = folder.glob("runs/**/last.ckpt")
        checkpoint.rename(folder / "run.ckpt")
        shutil.rmtree(folder / "runs")
    gone = {f"model.{key}": GONE for key in ("backbone", "selector", "rewards", "optimizer")}
    write_config(folder / "bare.yaml", gone)  # so that the checkpoint decides
    rows = {"class_path": "refine_pl.data.RowFiles"}
    rows["init_args"] = {"paths": "rows.jsonl", "task": "niah_single"}
    data = {"class_path": "refine_pl.data.TaskData", "init_args": {"test": {"rows": rows}}}
    (folder / "test.yaml").write_text(yaml.safe_dump({"data": data}))
    (folder / "rows.jsonl").write_text('{"prompt": "ab ?a", "answers": ["b"]}\n')
    (folder / "prompts.txt").write_text("ab cd\n")
    (folder / "spy_on_imports.py").write_text(SPY)
    (folder / "spy_package").mkdir()
    (folder / "spy_package" / "__init__.py").write_text(SPY)
    (folder / "spy_package" / "inner.py").write_text(SPY)
    return folder


@pytest.fixture
def workplace(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("spy_on_imports", "spy_package", "spy_package.inner", "own_rewards"):
        sys.modules.pop(name, None)


def edit(**changes):
    content = torch.load("run.ckpt", weights_only=True)
    content["hyper_parameters"] |= changes
    torch.save(content, "bad.ckpt")
    return content


def call(command, *options, checkpoint="bad.ckpt"):
    settings = {
        "fit": ["--config", "bare.yaml", "--trainer.max_epochs", "2"],
        "validate": ["--config", "bare.yaml"],
        "test": ["--config", "test.yaml", "--trainer.accelerator", "cpu"],
        "predict": ["--prompts", "prompts.txt", "--trainer.accelerator", "cpu"],
        "export": ["--out", "exported"],
    }[command]
    return run(command, *settings, "--ckpt_path", checkpoint, *options)


def nothing_ran():
    return not Path(MARK).exists() and Path("docs").is_dir()


def forbidden_cases():
    """Every place with some names, and every name in some places, chosen at random."""
    chooser = random.Random(5)
    cases = {(place, chooser.choice([*FORBIDDEN])) for place in PLACES for _ in range(2)}
    cases |= {(chooser.choice([*PLACES]), path) for path in FORBIDDEN for _ in range(2)}
    cases |= {("optimizer", path) for path in FORBIDDEN}
    return [(*case, COMMANDS[n % len(COMMANDS)]) for n, case in enumerate(sorted(cases))]


def test_nothing_that_a_checkpoint_names_is_run_or_imported(workplace):
    cases = forbidden_cases()
    refused = 0
    for place, path, command in cases:
        slot, wrap = PLACES[place]
        edit(**{slot: wrap({"class_path": path, "init_args": FORBIDDEN[path]})})
        outcome = call(command)
        assert nothing_ran(), (place, path, command)
        assert "Traceback" not in outcome.stderr
        if slot == "rewards" and command in ("test", "predict"):
            assert outcome.code == 0, outcome.stderr  # they need none
            continue
        assert outcome.code == 2, (place, path, command, outcome.stderr)
        said = " ".join(outcome.stderr.split())
        assert f"model.{slot}" in said, (place, path, said)
        refused += 1
    assert not {"spy_on_imports", "spy_package"} & sys.modules.keys()
    assert len(cases) == 51
    assert refused == 47


def test_the_check_notices_what_it_must_not_let_pass(workplace):
    """What the cases look for does happen when a user asks for it."""
    Path("asks.yaml").write_text(
        "model:\n  rewards:\n    match: {class_path: spy_on_imports.Reward}\n"
    )
    assert call("validate", "--config", "asks.yaml", checkpoint="run.ckpt").code == 2
    assert not nothing_ran()


def test_export_and_a_tokenizer_read_no_names(workplace):
    content = edit(optimizer={"class_path": "os.system", "init_args": {"command": f"touch {MARK}"}})
    content["refine_pl"]["tokenizer"] = {"class_path": "spy_on_imports.Reward", "init_args": {}}
    content["hyper_parameters"].pop("optimizer")
    torch.save(content, "bad.ckpt")
    assert call("export").code == 0
    for command in ("test", "predict"):
        outcome = call(command)
        assert outcome.code == 2
        said = " ".join(outcome.stderr.split())
        assert "data.init_args.tokenizer.class_path is spy_on_imports.Reward" in said
    assert nothing_ran()


def test_nor_in_python(workplace):
    for path, arguments in FORBIDDEN.items():
        edit(optimizer={"class_path": path, "init_args": arguments})
        with pytest.raises(CheckpointError) as caught:
            RefineModule.load_from_checkpoint("bad.ckpt")
        assert nothing_ran(), (path, caught.value)
    assert not {"spy_on_imports", "spy_package"} & sys.modules.keys()
    assert RefineModule.load_from_checkpoint("run.ckpt").seed == 0


OWN = """
from refine_pl.rewards import ExactMatch
class BracketsClose(ExactMatch):
    def __init__(self, pairs: str = "()", weight: float = 1.0):
        super().__init__(weight)
        self.pairs = pairs
"""
REWARDS = {"brackets": {"class_path": "own_rewards.BracketsClose", "init_args": {"pairs": "[]"}}}


def test_a_class_of_the_user_is_named_again(workplace):
    edit(rewards=REWARDS)
    for command in ("fit", "validate"):
        outcome = call(command)
        assert outcome.code == 2
        said = " ".join(outcome.stderr.split())
        named = "--model.rewards.brackets.class_path own_rewards.BracketsClose"
        assert f"give it in your configuration, if you trust it: {named}" in said
    for command in ("test", "predict"):  # without the file of the class
        assert call(command).code == 0
    (workplace / "own_rewards.py").write_text(OWN)
    outcome = call("validate", *named.split())
    assert outcome.code == 0, outcome.stderr
    shown = call("validate", *named.split(), "--print_config")
    config = yaml.safe_load(shown.stdout)["model"]["rewards"]["brackets"]
    assert config["init_args"]["pairs"] == "[]", "the checkpoint's arguments"
    match = {"class_path": "refine_pl.rewards.ExactMatch"}
    (workplace / "match.yaml").write_text(yaml.safe_dump({"model": {"rewards": {"m": match}}}))
    sys.modules.pop("own_rewards")
    (workplace / "own_rewards.py").unlink()
    assert call("validate", "--config", "match.yaml").code == 0, "the user's take their place"


def test_settings_of_the_user_call_no_function_either(workplace):
    """The same names in a configuration: only classes that fit, whatever trusts its author."""
    checked = 0
    for path, arguments in FORBIDDEN.items():
        if path.startswith("spy"):
            continue  # a user may have any module imported
        for slot in ("optimizer", "lr_scheduler", "selector"):
            for value in (path, {"class_path": path, "init_args": arguments}):
                text = yaml.safe_dump({"model": {slot: value}})
                Path("bad.yaml").write_text(text)
                outcome = run("fit", "--config", "own.yaml", "--config", "bad.yaml")
                assert outcome.code == 2, (path, slot, value)
                assert "Traceback" not in outcome.stderr
                assert f"model.{slot}" in outcome.stderr or path in outcome.stderr
                assert nothing_ran()
                checked += 1
    assert checked == 60


@pytest.mark.parametrize("function", ["os.system", "subprocess.call", "builtins.eval"])
def test_a_reward_function_is_not_one_of_pythons_own(workplace, function):
    for reads in ("texts", "records"):
        named = {"class_path": "refine_pl.rewards.FromFunction"}
        named["init_args"] = {"function": function, "reads": reads}
        text = yaml.safe_dump({"model": {"rewards": {"f": named}}})
        Path("bad.yaml").write_text(text)
        outcome = run("fit", "--config", "own.yaml", "--config", "bad.yaml")
        assert outcome.code == 2
        assert "Python's own" in outcome.stderr
