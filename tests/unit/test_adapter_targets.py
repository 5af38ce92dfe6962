"""Which maps an adapter reaches, and which of peft's options are taken."""

import random

import pytest
import tiny
import torch
from adapted import MODELS, gated_delta_net, merged_copy
from peft import LoraConfig

from refine_pl.adapters import Adapter, attach
from refine_pl.adapters.lora import OPTIONS
from refine_pl.adapters.targets import linear_maps
from refine_pl.errors import ConfigError

OWN_MAPS = {"DeltaNet": ("delta_rule", 5), "GatedDeltaNet": ("delta_rule", 7), "LaCT": ("lact", 5)}


def hybrid():
    """Three layers, of which the middle one is attention."""
    return tiny.delta_net(num_hidden_layers=3, attn={"layers": [1], "num_heads": 2})


def reached(policy, **options):
    names = attach(policy, LoraConfig(r=2, **options)).config.target_modules
    layers = {n for n, m in policy.named_modules() if hasattr(m, "lora_A")}
    assert layers == names  # peft has put its layers there and nowhere else
    return names


@pytest.mark.parametrize("name", MODELS)
def test_kinds_of_layers(name):
    kind, number = OWN_MAPS[name]
    maps = linear_maps(MODELS[name]())
    assert sorted(maps.values()) == sorted([kind] * 2 * number + ["mlp"] * 6)
    for words in ([kind], kind):
        assert reached(MODELS[name](), target_modules=words) == {
            n for n, k in maps.items() if k == kind
        }
    assert reached(MODELS[name]()) == reached(MODELS[name](), target_modules="all-linear")
    assert reached(MODELS[name](), target_modules=[kind, "mlp"]) == set(maps)


def test_names_of_peft_and_kinds_go_together():
    ends = {"q_proj", "k_proj", "v_proj", "o_proj"}
    names = reached(hybrid(), target_modules=["attention", "down_proj"])
    assert names == {
        *(f"model.layers.1.attn.{end}" for end in ends),
        *(f"model.layers.{i}.mlp.down_proj" for i in range(3)),
    }
    names = reached(hybrid(), target_modules=["q_proj"], exclude_modules=["delta_rule"])
    assert names == {"model.layers.1.attn.q_proj"}
    names = reached(hybrid(), target_modules=r".*layers\.[02]\.attn\.[kv]_proj")
    assert len(names) == 4
    names = reached(hybrid(), target_modules=["mlp"], layers_to_transform=[2])
    assert names == {f"model.layers.2.mlp.{end}_proj" for end in ("gate", "up", "down")}
    assert len(reached(hybrid(), target_modules=["model.layers.0.attn.q_proj"])) == 1


def test_random_choices_are_counted_and_said():
    chooser = random.Random(1)
    warned = 0
    for _ in range(20):
        policy = hybrid()
        maps = linear_maps(policy)
        chosen = chooser.sample(sorted(maps), chooser.randint(1, 4))
        attached = attach(policy, LoraConfig(r=1, target_modules=chosen))
        kinds = [maps[name] for name in chosen]
        said = attached.describe(policy)
        for kind, of in {"delta_rule": 10, "attention": 4, "mlp": 9}.items():
            assert attached.reached[kind] == (kinds.count(kind), of)
            assert f"{kind} {kinds.count(kind)} of {of}" in said
        assert ("warning: the adapter reaches no layer that carries" in said) == (
            "delta_rule" not in kinds
        )
        warned += "delta_rule" not in kinds
        trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
        assert f"{trained:,} of" in said
    assert 0 < warned < 20


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_modules": ["delta_rule", "gate_porj"]}, "did you mean gate_proj?"),
        ({"target_modules": ["attention"]}, "no linear map of the model is called that"),
        ({"target_modules": ["deltarule"]}, "did you mean delta_rule?"),
        ({"target_modules": ["embeddings"]}, "delta_rule (q_proj, k_proj"),
        ({"target_modules": ["lm_head"]}, "no linear map"),
        ({"target_modules": ["attn_norm"]}, "no linear map"),
        ({"target_modules": "nothing_.*"}, "no linear map"),
        ({"target_modules": "(q_proj"}, "not a regular expression"),
        ({"target_modules": ["mlp"], "exclude_modules": ["mlp"]}, "reaches no linear map"),
        ({"exclude_modules": ["mpl"]}, "did you mean mlp?"),
        ({"layers_to_transform": [7]}, "reaches no linear map"),
        ({"r": 0}, "peft refuses the adapter"),
        ({"lora_dropout": 0.1}, "would each read another model"),
        ({"bias": "all"}, "biases of the base stay"),
        ({"modules_to_save": ["norm"]}, "the base stays as it is"),
        ({"init_lora_weights": "pissa"}, "true, false, gaussian, orthogonal"),
        ({"inference_mode": True}, "nothing would be trained"),
        ({"megatron_config": {}, "megatron_core": "antigravity"}, "is not supported"),
        ({"trainable_token_indices": [1]}, "is not supported"),
        ({"target_parameters": ["x"]}, "is not supported"),
        ({"layer_replication": [(0, 1)]}, "is not supported"),
    ],
)
def test_what_is_refused(options, said):
    policy = tiny.delta_net()
    before = {n: p.requires_grad for n, p in policy.named_parameters()}
    with pytest.raises(ConfigError) as caught:
        attach(policy, LoraConfig(**options))
    assert said in str(caught.value)
    assert "model.adapter" in str(caught.value)
    assert {n: p.requires_grad for n, p in policy.named_parameters()} == before


def test_only_one_and_only_lora():
    policy = tiny.delta_net()
    attach(policy, LoraConfig())
    with pytest.raises(ConfigError, match="has an adapter already"):
        attach(policy, LoraConfig())
    with pytest.raises(ConfigError, match=r"a peft\.LoraConfig"):
        attach(tiny.delta_net(), {"r": 3})
    assert issubclass(LoraConfig, Adapter)
    assert not issubclass(dict, Adapter)
    assert not issubclass(torch.nn.Linear, Adapter)
    assert set(OPTIONS) <= vars(LoraConfig()).keys()


@pytest.mark.parametrize("seed", range(6))
def test_merged_is_what_the_adapter_computes_with_any_options(seed):
    chooser = random.Random(seed)
    options = {
        "r": chooser.choice([2, 4]),
        "lora_alpha": chooser.choice([1, 16]),
        "use_rslora": chooser.random() < 0.5,
        "use_dora": chooser.random() < 0.5,
        "init_lora_weights": chooser.choice([False, "gaussian", "orthogonal"]),
        "rank_pattern": chooser.choice([{}, {"q_proj": 6}]),
        "alpha_pattern": chooser.choice([{}, {"mlp.up_proj": 3}]),
    }
    policy = gated_delta_net()
    torch.manual_seed(seed)
    attach(policy, LoraConfig(**options))
    with torch.no_grad():
        for p in policy.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.1)
    whole = merged_copy(policy)
    assert whole.state_dict().keys() == gated_delta_net().state_dict().keys()
    tokens = tiny.batch([90, 71]).tokens
    torch.testing.assert_close(
        policy(tokens).hidden, whole(tokens).hidden, rtol=1e-9, atol=1e-10, msg=str(options)
    )
    assert (whole(tokens).hidden - gated_delta_net()(tokens).hidden).abs().max() > 1e-3
