"""LaCT: fields that it cannot honour are refused, and mixed precision keeps its states exact."""

import pytest
import tiny
import torch

from refine_pl.backbones import LaCT
from refine_pl.backbones.pretrained import build
from refine_pl.errors import CheckpointError, ConfigError


@pytest.mark.parametrize(
    "options",
    [
        {"newton_schulz_dtype": "float16"},
        {"num_attn_heads": 3},
        {"num_attn_heads": 16},
        {"num_lact_heads": 5},
        {"lr_dim": 3},
        {"lr_dim": 8, "inter_multi": 2},
        {"inter_multi": 0.05},
    ],
    ids=str,
)
def test_what_would_be_wrong_is_refused(options):
    with pytest.raises(ConfigError):
        tiny.lact(**options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_act", "gelu"),
        ("ttt_loss_type", "l2"),
        ("lr_parameterization", "linear"),
        ("elementwise_affine", False),
    ],
)
def test_published_fields_of_one_value_are_refused_with_another(name, value):
    config = tiny.lact().config() | {name: value}
    with pytest.raises(CheckpointError, match=f"{name}={value!r} is not supported"):
        build(config, "config.json")


def test_fields_without_effect_change_nothing():
    batch = tiny.batch([30])
    first = tiny.lact(dtype=torch.float32)
    idle = {"fp32_states": True, "use_fused_kernel": True, "last_layer_fuse_norm": False}
    second = tiny.lact(dtype=torch.float32, idle=idle)
    assert torch.equal(first(batch.tokens).hidden, second(batch.tokens).hidden)
    assert second.config()["fp32_states"] is True


def test_bfloat16_autocast_keeps_float32_states():
    policy = tiny.lact(dtype=torch.float32, use_muon=True, newton_schulz_dtype="bfloat16")
    tokens = tiny.batch([30]).tokens
    with torch.no_grad():
        exact = policy(tokens).hidden
        with torch.autocast("cpu", torch.bfloat16):
            output = policy(tokens, keep_trail=True)
            state = output.trail.at(torch.tensor([[20]])).fork(2)
            continued = policy(torch.ones(2, 1, dtype=torch.int64), state=state)
    for weights in filter(None, state.layers[0].fast.bank.states):
        assert {w.dtype for w in weights} == {torch.float32}
    assert continued.hidden.isfinite().all()
    assert (output.hidden - exact).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("backward_inside", [False, True])
def test_training_in_bfloat16_autocast(checkpointing, backward_inside):
    policy = tiny.lact(dtype=torch.float32, activation_checkpointing=checkpointing)
    with torch.autocast("cpu", torch.bfloat16):
        loss = policy(tiny.batch([30]).tokens).hidden.float().sin().sum()
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    gradients = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    policy(tiny.batch([30]).tokens).hidden.sin().sum().backward()
    assert len(gradients) > 30
    for name, got in gradients.items():
        expected = policy.get_parameter(name).grad
        assert got.dtype == torch.float32
        assert (got - expected).norm() < 0.5 * expected.norm(), name


@pytest.mark.parametrize("length", [5, 8, 9])
def test_every_parameter_has_a_gradient_however_short_the_text(length):
    policy = tiny.lact(dtype=torch.float32, w0_w2_low_rank=4)
    policy(tiny.batch([length]).tokens).hidden.sum().backward()
    missing = [name for name, p in policy.named_parameters() if p.grad is None]
    assert missing == ["lm_head.weight"]


def test_the_mlp_follows_the_published_rule():
    policy = LaCT(hidden_size=64, num_attn_heads=4, num_hidden_layers=1, vocab_size=11)
    assert policy.model.layers[0].mlp.gate_proj.weight.shape == (256, 64)
