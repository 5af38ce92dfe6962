"""Hybrids in transformers' own classes, on the CPU: any options, in both directions."""

import inspect
import json
import random

import command_line
import golden_checks
import peft
import pytest
import torch
from adapted import adapted
from closeness import logits_of, relative
from safetensors.torch import load_file, save_file

from refine_pl.adapters import save_adapter
from refine_pl.backbones import load_pretrained, save_pretrained

CLOSE = 5e-5  # float32, theirs often twice as far from float64 as ours
SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 24, "initializer_range": 0.15}
LINEAR, FULL = "linear_attention", "full_attention"


@pytest.fixture(autouse=True)
def _in_torch(monkeypatch):
    """transformers takes flash-linear-attention's kernels if that is installed, GPU or not."""
    from transformers.models.olmo_hybrid import modeling_olmo_hybrid
    from transformers.models.qwen3_5 import modeling_qwen3_5

    replaced = 0
    for module in (modeling_olmo_hybrid, modeling_qwen3_5):
        for name in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):
            function = inspect.unwrap(getattr(module, name))
            monkeypatch.setattr(module, name, function)
            replaced += function.__module__ == module.__name__
    assert replaced == 4


def drawn(kind, seed):
    """A configuration with options at random."""
    draw = random.Random(f"{kind} {seed}")
    key_heads, kv_heads, layers = (
        draw.choice((1, 2)),
        draw.choice((1, 2, 4)),
        draw.choice((2, 4, 5)),
    )
    config = {
        **SIZES,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": key_heads * draw.choice((1, 2, 3)),
        "linear_key_head_dim": draw.choice((6, 8)),
        "linear_value_head_dim": draw.choice((8, 10)),
        "linear_conv_kernel_dim": draw.choice((2, 3, 4)),
        "rms_norm_eps": draw.choice((1e-6, 1e-3)),
        "attention_bias": draw.random() < 0.5,
        "tie_word_embeddings": draw.random() < 0.5,
        "hidden_act": draw.choice(("silu", "swish")),
        "pad_token_id": draw.choice((None, 0, 5)),
        "eos_token_id": draw.choice((2, [2, 3])),
        "rope_parameters": {"rope_theta": draw.choice((50, 10000.0)), "rope_type": "default"},
    }
    if draw.random() < 0.5:
        kinds = [LINEAR, FULL, *(draw.choice((LINEAR, FULL)) for _ in range(layers - 2))]
        draw.shuffle(kinds)
        config["layer_types"] = kinds
    if draw.random() < 0.3:
        config["rope_parameters"] |= {"rope_type": "linear", "factor": 2.5}
    if kind == "qwen3_5_text":
        config["head_dim"] = draw.choice((8, 16))
        if draw.random() < 0.7:
            partial = draw.choice((0.25, 0.5, 1.0))
            config["rope_parameters"] |= {"partial_rotary_factor": partial}
        if draw.random() < 0.3:
            config["rope_parameters"] |= {"mrope_section": [1, 1, 0], "mrope_interleaved": True}
        config["full_attention_interval"] = draw.choice((2, 3, 4))
    else:
        config["linear_allow_neg_eigval"] = draw.random() < 0.5
        if draw.random() < 0.3:
            config["rope_parameters"] = {"rope_theta": None}
        for name in ("linear_value_head_dim", "linear_key_head_dim", "num_key_value_heads"):
            if draw.random() < 0.3:
                config[name] = None
    return config


def in_theirs(kind, config):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or name.endswith(("bias", "dt_bias")):
                weight.add_(torch.randn_like(weight), alpha=0.2)
    return model


def tokens_of(length=70):
    return torch.randint(0, 61, (2, length), generator=torch.Generator().manual_seed(1))


def read_again(folder, cls=None):
    """As a user of the exported folder would."""
    from transformers import AutoModelForCausalLM

    model, found = (cls or AutoModelForCausalLM).from_pretrained(folder, output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["qwen3_5_text", "olmo_hybrid"])
def test_options_at_random(kind, seed, tmp_path):
    config = drawn(kind, seed)
    theirs, tokens = in_theirs(kind, config), tokens_of()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_pretrained(str(tmp_path / "theirs"))
    with torch.no_grad():
        expected = theirs(input_ids=tokens).logits
    assert relative(logits_of(ours, tokens), expected) < CLOSE
    weights = theirs.state_dict()
    assert ours.state_dict().keys() == weights.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in ours.state_dict().items())
    save_pretrained(ours, tmp_path / "ours")
    again = read_again(tmp_path / "ours")
    assert all(torch.equal(weights[name], tensor) for name, tensor in again.state_dict().items())
    with torch.no_grad():
        assert torch.equal(again(input_ids=tokens).logits, expected)
    assert load_pretrained(str(tmp_path / "ours")).config() == ours.config()


@pytest.mark.parametrize("kind", ["qwen3_5_text", "olmo_hybrid"])
def test_gradients_and_what_is_not_trained(kind):
    from refine_pl.backbones.pretrained import build

    config = drawn(kind, 3) | {"pad_token_id": 5, "tie_word_embeddings": False}
    theirs, tokens = in_theirs(kind, config), tokens_of(20)
    ours = build(theirs.config.to_dict(), "here")
    ours.load_state_dict(theirs.state_dict(), assign=True)
    ours.requires_grad_(True)
    (theirs(input_ids=tokens).logits ** 2).mean().backward()
    hidden = ours(tokens).hidden
    logits = ours.head(hidden.flatten(0, 1), logits=True).logits
    (logits**2).mean().backward()
    compared = 0
    for name, weight in theirs.named_parameters():
        assert relative(ours.get_parameter(name).grad, weight.grad) < 1e-4, name
        compared += 1
    assert compared == len(list(ours.parameters()))
    assert ours.model.embed_tokens.weight.grad[5].abs().sum() == 0
    assert (tokens == 5).any()


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 77.0, "partial_rotary_factor": 0.5},
        {"rope_theta": 77.0, "rope_parameters": {"rope_theta": 30.0}},
        {"rope_scaling": {"type": "linear", "factor": 3.0}, "rope_theta": 30.0},
        {"rope_parameters": None},
        {"rope_scaling": None, "rope_theta": 5},
    ],
    ids=str,
)
def test_earlier_ways_to_say_rotations(fields, tmp_path):
    config = drawn("qwen3_5_text", 1)
    del config["rope_parameters"]
    theirs, tokens = in_theirs("qwen3_5_text", config | fields), tokens_of()
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["rope_parameters"]
    path.write_text(json.dumps(stored | fields))
    with torch.no_grad():
        expected = theirs(input_ids=tokens).logits
    assert relative(logits_of(load_pretrained(str(tmp_path)), tokens), expected) < CLOSE


def multimodal(folder, **changes):
    """The golden model, in 16 bits, with weights for predicting several tokens."""
    source = golden_checks.FOLDER / "qwen3_5_multimodal"
    weights = {k: v.bfloat16() for k, v in load_file(source / "model.safetensors").items()}
    weights["mtp.layers.0.mlp.up_proj.weight"] = torch.randn(3, 4).bfloat16()
    weights["mtp.fc.weight"] = torch.randn(2, 2)
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text()) | changes
    config["text_config"] |= {
        "attn_output_gate": True,
        "mtp_num_hidden_layers": 1,
        "mamba_ssm_dtype": "float32",
        "mlp_only_layers": [],
        "eos_token_id": [7, 8],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return weights


def test_a_vision_tower_is_carried_through(tmp_path):
    from transformers import AutoModelForImageTextToText

    weights = multimodal(tmp_path / "model")
    policy = load_pretrained(str(tmp_path / "model"))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.01)  # trained
    save_pretrained(policy, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored.keys() == weights.keys()
    carried = 0
    for name, tensor in stored.items():
        if name.startswith(("model.visual.", "mtp.")):
            assert tensor.dtype == weights[name].dtype
            assert torch.equal(tensor, weights[name])
            carried += 1
        else:
            assert torch.equal(tensor, weights[name].float() * 1.01)
    assert carried == 23
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    before = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["vision_config"] == before["vision_config"]
    assert config["text_config"]["mtp_num_hidden_layers"] == 1
    assert config["text_config"]["eos_token_id"] == [7, 8]
    theirs = read_again(tmp_path / "out", AutoModelForImageTextToText)
    tokens = tokens_of(40)
    with torch.no_grad():
        expected = theirs(input_ids=tokens).logits
    assert relative(logits_of(policy, tokens), expected) < CLOSE
    again = load_pretrained(str(tmp_path / "out"))
    assert again.config() == policy.config()
    assert again.carried.keys() == policy.carried.keys()


def test_a_text_model_may_have_the_names_of_a_multimodal_one(tmp_path):
    weights = multimodal(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    text = json.loads(path.read_text())["text_config"]
    path.write_text(json.dumps(text))
    policy = load_pretrained(str(tmp_path / "model"))
    assert policy.config()["model_type"] == "qwen3_5_text"
    save_pretrained(policy, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    names = {name.replace("model.language_model.", "model.") for name in weights}
    assert stored.keys() == names


def with_bytes(name, folder):
    """A golden model with a vocabulary of 257 tokens, for bytes; the names of its own weights."""
    folder.mkdir()
    config = json.loads((golden_checks.FOLDER / name / "config.json").read_text())
    for part in (config, config.get("text_config", {})):
        part |= {"vocab_size": 257} if "hidden_size" in part else {}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(golden_checks.FOLDER / name / "model.safetensors")
    for key in weights:
        if key.endswith(("embed_tokens.weight", "lm_head.weight")):
            weights[key] = torch.cat([weights[key]] * 3)[:257].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return weights


@pytest.mark.parametrize("name", ["qwen3_5_base", "qwen3_5_multimodal", "olmo_hybrid_base"])
def test_trained_and_exported_on_the_command_line(name, tmp_path, monkeypatch):
    """From a folder to a folder: transformers has the weights that the checkpoint has."""
    from transformers import AutoModelForImageTextToText

    monkeypatch.chdir(tmp_path)
    before = with_bytes(name, tmp_path / "model")
    command_line.write_documents(tmp_path / "docs")
    edits = {"model.backbone": command_line.GONE, "model.pretrained": "model"}
    command_line.write_config(tmp_path / "c.yaml", edits | {"model.optimizer.init_args.lr": 0.01})
    done = command_line.run("fit", "--config", "c.yaml")
    assert done.code == 0, done.stderr
    (checkpoint,) = (tmp_path / "runs").rglob("last.ckpt")
    done = command_line.run("export", "--ckpt_path", checkpoint, "--out", "out")
    assert done.code == 0, done.stderr
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored.keys() == before.keys()
    same = {key for key, tensor in stored.items() if torch.equal(tensor, before[key])}
    towers = {key for key in before if key.startswith("model.visual.")}
    assert same == towers
    assert bool(towers) == (name == "qwen3_5_multimodal")
    policy = load_pretrained("out")
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(trained[f"policy.{k}"], t) for k, t in policy.state_dict().items())
    theirs = read_again("out", AutoModelForImageTextToText if towers else None)
    tokens = tokens_of(50)
    with torch.no_grad():
        expected = theirs(input_ids=tokens).logits
    assert relative(logits_of(policy, tokens), expected) < CLOSE


def test_an_adapter_leaves_the_tower_with_its_base(tmp_path, monkeypatch):
    """Checkpoints do not hold it again, and the merged export has it."""
    monkeypatch.chdir(tmp_path)
    before = with_bytes("qwen3_5_multimodal", tmp_path / "model")
    command_line.write_documents(tmp_path / "docs")
    lora = {"class_path": "peft.LoraConfig", "init_args": {"target_modules": ["delta_rule"]}}
    edits = {"model.backbone": command_line.GONE, "model.pretrained": "model"}
    command_line.write_config(tmp_path / "c.yaml", edits | {"model.adapter": lora})
    done = command_line.run("fit", "--config", "c.yaml")
    assert done.code == 0, done.stderr
    (checkpoint,) = (tmp_path / "runs").rglob("last.ckpt")
    held = torch.load(checkpoint, weights_only=True)
    assert "adapter" in held["refine_pl"]
    assert "carried" not in held["refine_pl"]
    done = command_line.run("export", "--ckpt_path", checkpoint, "--out", "out", "--merge")
    assert done.code == 0, done.stderr
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored.keys() == before.keys()
    towers = [key for key in before if key.startswith("model.visual.")]
    assert towers
    assert all(torch.equal(stored[key], before[key]) for key in towers)


@pytest.mark.parametrize("name", ["qwen3_5_base", "qwen3_5_multimodal", "olmo_hybrid_base"])
def test_peft_loads_an_adapter_on_the_class_of_transformers(name, tmp_path):
    """Of a multimodal model the text model, which is what AutoModelForCausalLM makes of it."""
    from transformers import AutoModelForCausalLM

    folder, tokens = golden_checks.FOLDER / name, tokens_of(40)
    policy = load_pretrained(str(folder))
    attached = adapted(policy)
    save_adapter(policy, attached, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        before = base(input_ids=tokens).logits
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        expected = theirs(input_ids=tokens).logits
    assert relative(logits_of(policy, tokens), expected) < CLOSE
    assert relative(before, expected) > 0.01
