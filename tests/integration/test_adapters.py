"""``model.adapter``: trained, saved, resumed, exported and refused, as a user meets it."""

import json
import shutil
import sys
from pathlib import Path

import command_line
import peft
import pytest
import torch
import yaml
from adapted import merged_copy
from command_line import GONE
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from runs import (
    assert_same_parameters,
    backbone,
    every_batch,
    module,
    parameters,
    train,
    trainer,
)
from safetensors.torch import load_file
from task_runs import TaskRowsData

from refine_pl.adapters import attach
from refine_pl.backbones import load_pretrained, save_pretrained
from refine_pl.errors import CheckpointError, ConfigError
from refine_pl.training import TestTimeTraining
from refine_pl.training.module import RefineModule
from refine_pl.training.trainer_checks import check_sharding

LORA = {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "target_modules": ["delta_rule"]}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_pretrained(backbone(), folder / "model")
    return str(folder / "model")


def adapted_module(base, policy=None, seed=5, **options):
    torch.manual_seed(seed)
    settings = {"kl_weight": 0.1, "adapter": peft.LoraConfig(r=4, target_modules=["delta_rule"])}
    policy = policy or load_pretrained(base, activation_checkpointing=True)
    return module(policy, **settings | options)


def saved(folder, model, iterations=3):
    run = {"callbacks": [every_batch(folder, 2)], "enable_checkpointing": True}
    return train(model, iterations=iterations, **run)


def content(path):
    return torch.load(path, weights_only=True)


# In Python ----------------------------------------------------------------------------------------


def test_only_the_adapter_is_trained_and_kept(base, tmp_path):
    model = adapted_module(base)
    before = parameters(model)
    curve = saved(tmp_path, model)
    after = parameters(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {name for name in before if ".lora_" in name}
    assert changed == trained
    assert len(trained) == 2 * 10
    assert curve["train/kl"][-1] > curve["train/kl"][0] > 0
    held = content(tmp_path / "step=6.ckpt")
    copies = ("policy", "reference", "yardstick")
    names = {f"{model}.{name}" for model in copies for name in trained}
    assert held["state_dict"].keys() == names
    (moments,) = held["optimizer_states"]
    assert len(moments["state"]) == len(trained)
    about = held["refine_pl"]["adapter"]
    assert about["base"]["path"] == base
    assert about["config"]["r"] == 4


@pytest.mark.parametrize("made", [False, True])
def test_resume_is_bit_exact(base, tmp_path, made):
    """From an adapter alone, and from a checkpoint of a base that was made."""

    def new(seed):
        return adapted_module(base, backbone() if made else None, seed)

    whole = new(5)
    curve = saved(tmp_path, whole, 4)
    held = content(tmp_path / "step=4.ckpt")["state_dict"]
    assert any("base_layer" in name for name in held) == made
    resumed = new(6)  # another fresh adapter, and reference, which the checkpoint replaces
    rest = train(resumed, iterations=4, ckpt_path=tmp_path / "step=4.ckpt")
    for name in ("train/ntp_loss", "train/kl", "reward/similarity/mean", "optim/grad_norm"):
        assert rest[name] == curve[name][2:], name
    assert_same_parameters(resumed, whole, rtol=0, atol=0)


def test_a_frozen_base_is_kept_in_the_precision_of_the_trainer(base, tmp_path):
    results = []
    for path in (base, None):  # a base that was made stays whole: the checkpoint is its only copy
        policy = load_pretrained(base)
        if path is None:
            policy.loaded_from = None
        model = adapted_module(base, policy)
        curve = train(model, precision="bf16-mixed")
        kept = {p.dtype for p in model.policy.parameters() if not p.requires_grad}
        assert (torch.bfloat16 in kept) == (path is not None)
        results.append((curve["train/ntp_loss"], curve["train/kl"], parameters(model)))
    assert results[0][:2] == results[1][:2]
    trained = [name for name in results[0][2] if ".lora_" in name]
    assert all(torch.equal(results[0][2][name], results[1][2][name]) for name in trained)


def test_test_time_training_trains_the_adapter_and_puts_it_back(base):
    model = adapted_module(base)
    before = parameters(model)
    phase = TestTimeTraining()
    run = trainer(phase, inference_mode=False, limit_test_batches=1.0)
    run.test(model, datamodule=TaskRowsData(), verbose=False)
    assert phase.totals()["updates"] == 3
    assert phase.totals()["kl"] >= 0
    assert len(phase._original) == len([n for n in before if ".lora_" in n])
    assert all(torch.equal(value, before[name]) for name, value in parameters(model).items())


def test_what_does_not_fit_a_checkpoint_is_refused(base, tmp_path):
    saved(tmp_path, adapted_module(base), 1)
    checkpoint = tmp_path / "step=2.ckpt"
    other = backbone(seed=9)
    save_pretrained(other, tmp_path / "other")
    lora = {"r": 4, "target_modules": ["delta_rule"]}
    cases = {
        "trained on other weights": adapted_module(str(tmp_path / "other")),
        "lora_alpha was None, is 16": adapted_module(
            base, adapter=peft.LoraConfig(lora_alpha=16, **lora)
        ),
        "other options: r was 4, is 3": adapted_module(
            base, adapter=peft.LoraConfig(**lora | {"r": 3})
        ),
        "target_modules was": adapted_module(base, adapter=peft.LoraConfig(r=4)),
        "this model has none": adapted_module(base, adapter=None),
    }
    for said, model in cases.items():
        with pytest.raises(CheckpointError, match=said):
            train(model, iterations=2, ckpt_path=checkpoint)
    saved(tmp_path / "whole", adapted_module(base, adapter=None), 1)
    with pytest.raises(CheckpointError, match="this model has an adapter, and the checkpoint has"):
        train(adapted_module(base), iterations=2, ckpt_path=tmp_path / "whole" / "step=2.ckpt")


def test_sharding_is_refused(base):
    run = trainer(strategy=ModelParallelStrategy())
    run.state.fn = TrainerFn.FITTING
    with pytest.raises(ConfigError, match=r"model\.adapter is given(?s:.*)auto or ddp"):
        check_sharding(run, has_adapter=True)


# On the command line ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """A folder with the base, documents, a configuration, and the checkpoint of a run."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree(base, folder / "model")
        command_line.write_documents(folder / "docs")
        edits = {"model.backbone": GONE, "model.pretrained": "model", "model.adapter": LORA}
        edits |= {"trainer.precision": "bf16-mixed", "model.optimizer.init_args.lr": 0.01}
        command_line.write_config(folder / "c.yaml", edits)
        outcome = command_line.run("fit", "--config", "c.yaml", "--model.kl_weight", "0.1")
        assert outcome.code == 0, outcome.stderr
        (checkpoint,) = folder.glob("runs/**/last.ckpt")
        shutil.copy(checkpoint, folder / "run.ckpt")
        (folder / "said.txt").write_text(outcome.stdout + outcome.stderr)
        (folder / "prompts.txt").write_text("ab cd\nef gh\n")
    return folder


@pytest.fixture
def workplace(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    held = content(tmp_path / "run.ckpt")
    held["refine_pl"]["adapter"]["base"]["path"] = str(tmp_path / "model")
    torch.save(held, tmp_path / "run.ckpt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_a_run_says(trained):
    said = (trained / "said.txt").read_text()
    assert "adapter: LoRA, rank 4," in said
    assert "linear maps: delta_rule 10 of 10, mlp 0 of 6" in said
    assert "warning" not in said.lower()


def test_the_checkpoint_knows_base_and_adapter(workplace):
    bare = yaml.safe_load(Path("c.yaml").read_text())
    for key in ("adapter", "pretrained"):
        del bare["model"][key]
    Path("bare.yaml").write_text(yaml.safe_dump(bare))
    options = ["--ckpt_path", "run.ckpt", "--trainer.max_epochs", "2"]
    first = command_line.run("fit", "--config", "bare.yaml", *options)
    assert first.code == 0, first.stderr
    assert "rank 4" in first.stdout + first.stderr
    outcome = command_line.run("fit", "--config", "c.yaml", *options)
    assert outcome.code == 0, outcome.stderr
    one, other = (
        content(max(Path("runs", name).rglob("last.ckpt")))["state_dict"] for name in ("bare", "c")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    for command in (
        ["validate", "--config", "bare.yaml"],
        ["predict", "--prompts", "prompts.txt", "--trainer.accelerator", "cpu"],
    ):
        outcome = command_line.run(*command, "--ckpt_path", "run.ckpt")
        assert outcome.code == 0, outcome.stderr
    model = RefineModule.load_from_checkpoint("run.ckpt")
    assert model.adapter.config.r == 4
    held = content("run.ckpt")["state_dict"]
    for name, p in model.policy.named_parameters():
        assert (f"policy.{name}" in held) == p.requires_grad
        assert not p.requires_grad or torch.equal(p, held[f"policy.{name}"])


def test_exports(workplace):
    merged = command_line.run("export", "--ckpt_path", "run.ckpt", "--out", "merged", "--merge")
    assert merged.code == 0, merged.stderr
    whole = load_pretrained("merged")
    model = RefineModule.load_from_checkpoint("run.ckpt")
    expected = merged_copy(model.policy).state_dict()
    assert all(torch.equal(whole.state_dict()[name], expected[name]) for name in expected)
    start = load_pretrained("model").state_dict()
    assert any(not torch.equal(whole.state_dict()[name], start[name]) for name in start)

    alone = command_line.run("export", "--ckpt_path", "run.ckpt", "--out", "adapter")
    assert alone.code == 0, alone.stderr
    assert "adapter_config.json, adapter_model.safetensors, checksums.json" in alone.stdout
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    assert set(config["target_modules"]) == {"q_proj", "k_proj", "v_proj", "b_proj", "o_proj"}
    names = load_file("adapter/adapter_model.safetensors").keys()
    assert "base_model.model.model.layers.0.attn.q_proj.lora_A.weight" in names
    assert len(names) == 20
    assert command_line.run("doctor", "--verify", "adapter").code == 0


def test_peft_loads_the_adapter_on_the_class_of_transformers(workplace):
    pytest.importorskip("triton", reason="flash-linear-attention needs it to be imported")
    import fla  # noqa: F401 - tells transformers its kinds of models
    from transformers import AutoModelForCausalLM

    for name, option in (("adapter", []), ("merged", ["--merge"])):
        outcome = command_line.run("export", "--ckpt_path", "run.ckpt", "--out", name, *option)
        assert outcome.code == 0, outcome.stderr
    theirs = AutoModelForCausalLM.from_pretrained("model")
    adapted = peft.PeftModel.from_pretrained(theirs, "adapter")
    held = load_file("adapter/adapter_model.safetensors")
    found = peft.get_peft_model_state_dict(adapted)
    assert all(torch.equal(found[name], tensor) for name, tensor in held.items())
    assert len(found) == len(held) == 20
    weights, ours = adapted.merge_and_unload().state_dict(), load_pretrained("merged").state_dict()
    assert weights.keys() == ours.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-6, atol=1e-7)


def test_what_cannot_be_exported(workplace):
    shutil.move("model", "moved")
    cases = [
        (["--out", "x"], "--base FOLDER, where the same weights are now"),
        (["--out", "x", "--base", "nowhere"], "cannot be loaded"),
    ]
    save_pretrained(backbone(seed=9), "other")
    cases.append((["--out", "x", "--base", "other"], "was trained on other weights than those of"))
    for options, said in cases:
        outcome = command_line.run("export", "--ckpt_path", "run.ckpt", *options)
        assert outcome.code == 2
        assert said in " ".join(outcome.stderr.split())
    options = ["--ckpt_path", "run.ckpt", "--base", "moved"]
    assert command_line.run("export", *options, "--out", "y").code == 0
    outcome = command_line.run("export", *options, "--out", "y")
    assert "y already holds an adapter" in outcome.stderr
    assert not Path("x").exists()


def test_a_base_that_was_made_is_exported_merged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = adapted_module(None, backbone(), kl_weight=0.0)
    saved(tmp_path, model, 1)
    outcome = command_line.run("export", "--ckpt_path", "step=2.ckpt", "--out", "x")
    assert outcome.code == 2
    assert "--merge writes the whole model" in outcome.stderr
    outcome = command_line.run("export", "--ckpt_path", "step=2.ckpt", "--out", "x", "--merge")
    assert outcome.code == 0, outcome.stderr
    expected = merged_copy(model.policy).state_dict()
    found = load_pretrained("x").state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    saved(tmp_path / "plain", adapted_module(None, backbone(), adapter=None), 1)
    words = ["export", "--ckpt_path", "plain/step=2.ckpt", "--out", "z", "--merge"]
    outcome = command_line.run(*words)
    assert outcome.code == 2
    assert "has no adapter that could be merged" in outcome.stderr


REFUSED = {
    "another class of peft": {"class_path": "peft.IA3Config", "init_args": {}},
    "its module": {"class_path": "peft.tuners.lora.config.LoraConfig", "init_args": {}},
    "a function of peft": {"class_path": "peft.get_peft_model", "init_args": {}},
    "a module to import": {
        "class_path": "peft.LoraConfig",
        "init_args": {"megatron_config": {"a": 1}, "megatron_core": "spy_on_imports"},
    },
    "another class inside": {
        "class_path": "peft.LoraConfig",
        "init_args": {"eva_config": {"class_path": "spy_on_imports.Eva", "init_args": {}}},
    },
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_checkpoint_may_name_lora_config_and_nothing_else(workplace, what):
    Path("spy_on_imports.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    held = content("run.ckpt")
    held["hyper_parameters"]["adapter"] = REFUSED[what]
    torch.save(held, "bad.ckpt")
    config = yaml.safe_load(Path("c.yaml").read_text())
    del config["model"]["adapter"]
    Path("bare.yaml").write_text(yaml.safe_dump(config))
    outcome = command_line.run("validate", "--config", "bare.yaml", "--ckpt_path", "bad.ckpt")
    assert outcome.code == 2
    assert "model.adapter" in outcome.stderr
    with pytest.raises(Exception, match=r"adapter|peft|spy"):
        RefineModule.load_from_checkpoint("bad.ckpt")
    assert not Path("ran").exists()
    assert "spy_on_imports" not in sys.modules


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.adapter.init_args.target_module", "mlp"], "did you mean target_modules?"),
        (["--model.adapter.init_args.r", "few"], "an integer"),
        (["--model.adapter.init_args.target_modules", "[deltarule]"], "did you mean delta_rule?"),
        (["--model.adapter", "torch.nn.Linear"], "a class_path of an Adapter: peft.LoraConfig"),
        (["--model.adapter", "peft.LoraConfg"], "peft.LoraConfig"),
        (["--model.adapter.init_args.lora_dropout", "0.5"], "would each read another model"),
    ],
)
def test_slips(workplace, options, said):
    outcome = command_line.run("fit", "--config", "c.yaml", *options)
    assert outcome.code == 2
    assert said in " ".join(outcome.stderr.split())


def test_without_the_package_the_way_out_is_named(workplace, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)  # importing it fails
    for words in (
        ["fit", "--config", "c.yaml"],
        ["export", "--ckpt_path", "run.ckpt", "--out", "x"],
        ["predict", "--prompts", "prompts.txt", "--ckpt_path", "run.ckpt"],
    ):
        outcome = command_line.run(*words)
        assert outcome.code == 2, outcome.stderr
        assert "pip install 'refine-pl[lora]'" in outcome.stderr, outcome.stderr
    config = yaml.safe_load(Path("c.yaml").read_text())
    del config["model"]["adapter"]
    Path("bare.yaml").write_text(yaml.safe_dump(config))
    assert command_line.run("fit", "--config", "bare.yaml").code == 0  # nothing else needs it


def test_a_policy_takes_one_in_python_too(base):
    policy = load_pretrained(base)
    attached = attach(policy, peft.LoraConfig(r=2, target_modules="mlp"))
    assert attached.reached == {"delta_rule": (0, 10), "mlp": (6, 6)}
    assert attached.base["path"] == base
