"""The published models, built without memory: their sizes, keys and shapes."""

import pytest
import torch

from refine_pl.backbones import DeltaNet, GatedDeltaNet, LaCT

DELTA_NET = {"hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 16, "vocab_size": 32000}
GATED = {"hidden_size": 2048, "num_hidden_layers": 21, "num_heads": 6, "head_dim": 256}
LACT = {
    "hidden_size": 1536,
    "num_hidden_layers": 24,
    "num_attn_heads": 24,
    "num_lact_heads": 4,
    "inter_multi": 1,
    "lact_chunk_size": 2048,
    "window_size": 2048,
    "w0_w2_low_rank": 32,
    "use_momentum": True,
    "learnable_ttt_scale": True,
    "rope_theta": 1e6,
    "vocab_size": 32000,
    "norm_eps": 1e-6,
}


def build(backbone, fields):
    with torch.device("meta"):
        policy = backbone(**fields)
    assert {p.device.type for p in policy.parameters()} == {"meta"}
    return policy


def shapes(policy):
    return {key: tuple(value.shape) for key, value in policy.state_dict().items()}


def outside(hidden, layers, inner, vocab_size=32000):
    """Everything but the mixers."""
    expected = {
        "model.embeddings.weight": (vocab_size, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab_size, hidden),
    }
    for i in range(layers):
        expected |= {
            f"model.layers.{i}.{key}": shape
            for key, shape in {
                "attn_norm.weight": (hidden,),
                "mlp_norm.weight": (hidden,),
                "mlp.gate_proj.weight": (inner, hidden),
                "mlp.up_proj.weight": (inner, hidden),
                "mlp.down_proj.weight": (hidden, inner),
            }.items()
        }
    return expected


def inside(mixer, layers):
    return {
        f"model.layers.{i}.attn.{key}": shape for i in range(layers) for key, shape in mixer.items()
    }


def test_delta_net_1_3b():
    policy = build(DeltaNet, DELTA_NET)
    assert sum(p.numel() for p in policy.parameters()) == 1_365_677_056
    square = (2048, 2048)
    mixer = {f"{name}_proj.weight": square for name in "qkvo"} | {"b_proj.weight": (16, 2048)}
    mixer |= {f"{name}_conv1d.weight": (2048, 1, 4) for name in "qkv"}
    mixer |= {"o_norm.weight": (128,)}
    assert shapes(policy) == outside(2048, 24, 5632) | inside(mixer, 24)


def test_lact_760m():
    policy = build(LaCT, LACT)
    assert sum(p.numel() for p in policy.parameters()) == 797_625_312
    mixer = {
        "qkv.weight": (4608, 1536),
        "o_proj.weight": (1536, 1536),
        "qk_scale": (1536, 2),
        "qk_offset": (1536, 2),
        "w0.w_left": (4, 384, 32),
        "w0.w_right": (4, 32, 384),
        "w2.w_left": (4, 384, 32),
        "w2.w_right": (4, 32, 384),
        "w1": (4, 384, 384),
        "lr_proj.weight": (12, 1536),
        "lr_proj.bias": (12,),
        "ttt_scale_proj.weight": (4, 1536),
        "ttt_scale_proj.bias": (4,),
        "ttt_norm.weight": (384,),
        "momentum_proj.0.weight": (4, 1536),
        "momentum_proj.0.bias": (4,),
    }
    assert shapes(policy) == outside(1536, 24, 4096) | inside(mixer, 24)


def test_lact_with_every_optional_parameter():
    options = {"qkv_bias": True, "attn_qk_norm": True, "w0_w2_low_rank": -1, "inter_multi": 2}
    keys = shapes(build(LaCT, LACT | options | {"num_hidden_layers": 1}))
    attn = {k.removeprefix("model.layers.0.attn."): v for k, v in keys.items() if ".attn." in k}
    assert attn["qkv.bias"] == (4608,)
    assert attn["q_norm.weight"] == attn["k_norm.weight"] == (1536,)
    assert attn["w0"] == attn["w2"] == (4, 768, 384)
    assert attn["w1"] == (4, 384, 768)
    fewer = {"use_momentum": False, "learnable_ttt_scale": False, "num_hidden_layers": 1}
    keys = shapes(build(LaCT, LACT | fewer))
    assert not [key for key in keys if "momentum" in key or "ttt_scale" in key]


@pytest.mark.parametrize(("num_v_heads", "value_heads"), [(None, 6), (12, 12)])
def test_gated_delta_net(num_v_heads, value_heads):
    policy = build(GatedDeltaNet, GATED | {"num_v_heads": num_v_heads})
    values = value_heads * 512
    mixer = {
        "q_proj.weight": (1536, 2048),
        "k_proj.weight": (1536, 2048),
        "v_proj.weight": (values, 2048),
        "g_proj.weight": (values, 2048),
        "o_proj.weight": (2048, values),
        "a_proj.weight": (value_heads, 2048),
        "b_proj.weight": (value_heads, 2048),
        "A_log": (value_heads,),
        "dt_bias": (value_heads,),
        "q_conv1d.weight": (1536, 1, 4),
        "k_conv1d.weight": (1536, 1, 4),
        "v_conv1d.weight": (values, 1, 4),
        "o_norm.weight": (512,),
    }
    assert shapes(policy) == outside(2048, 21, 5632) | inside(mixer, 21)


def test_gated_delta_net_1_5b():
    """The published checkpoint that the recipes name."""
    fields = {"hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 8, "head_dim": 256}
    policy = build(GatedDeltaNet, fields | {"expand_v": 1})
    assert sum(p.numel() for p in policy.parameters()) == 1_466_343_808
