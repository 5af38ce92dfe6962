"""GatedDeltaNet: forks equal recomputation, rows continue, its fields mean what they say."""

import fork_checks
import pytest
import tiny
import torch

from refine_kernels.delta_rule.reference import delta_rule_reference
from refine_pl.backbones import GatedDeltaNet
from refine_pl.backbones.pretrained import build
from refine_pl.errors import CheckpointError

# Around the borders of the recurrence's chunks (64 tokens), around 0, and at the end.
POSITIONS = [[1, 2, 63, 64, 65, 130], [3, 4, 62, 66, 100, 127]]
LENGTHS = [140, 131]

OPTIONS = [
    {},
    {"num_v_heads": 4, "expand_v": 1.0},
    {"use_gate": False, "allow_neg_eigval": True},
    {"use_short_conv": False, "output_gate_activation": "sigmoid"},
    {"conv_size": 2, "activation_checkpointing": True},
    {"tie_word_embeddings": True, "expand_v": 0.5, "num_v_heads": 6},
]


def gated_delta_net(dtype=torch.float64, **options):
    torch.manual_seed(0)
    return GatedDeltaNet(**tiny.SMALL | {"head_dim": 8} | options).to(dtype)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("copies", [1, 3])
def test_forks_equal_recomputation(options, copies):
    policy = gated_delta_net(**options)
    fork_checks.check_replay(policy, LENGTHS, POSITIONS, copies)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_generators_draw_the_same_rollouts(options):
    fork_checks.check_generators(gated_delta_net(**options), LENGTHS, POSITIONS, copies=2)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_states_continue_rows(options):
    policy = gated_delta_net(**options)
    fork_checks.check_parts(policy, 150, 70, [5, 40, 64, 70])
    fork_checks.check_token_by_token(policy, 40)


@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
def test_unequal_rows_continue_from_their_own_ends(options):
    policy = gated_delta_net(**options)
    fork_checks.check_unequal_rows(policy, [33, 90, 1], [4, 2, 20])
    fork_checks.check_unequal_rows(policy, [33, 90, 1], [4, 0, 3])


def test_decoding_needs_constant_memory():
    policy = gated_delta_net(torch.float32)
    sizes = []
    with torch.no_grad():
        state = policy(tiny.batch([20]).tokens).state.fork(3)
        for _ in range(70):
            state = policy(torch.ones(3, 1, dtype=torch.int64), state=state).state
            sizes.append(state.nbytes)
    assert max(sizes[35:]) <= max(sizes[:35])


def test_the_mixer_is_the_recurrence_token_by_token():
    """Value heads that lie next to each other share a head of q and k."""
    policy = gated_delta_net(num_v_heads=4, use_short_conv=False, use_gate=False)
    mixer = policy.model.layers[0].attn
    x = torch.randn(1, 70, 16, dtype=torch.float64)
    seen = {}
    mixer.o_norm.register_forward_pre_hook(lambda _, args: seen.update(output=args[0]))
    from refine_pl.backbones.base import TokenLayout

    layout = TokenLayout(1, 70, torch.tensor([70]))
    mixer(x[0], layout, None, False)
    silu = torch.nn.functional.silu
    q, k = (silu(p(x)).view(1, 70, 2, 8) for p in (mixer.q_proj, mixer.k_proj))
    v = silu(mixer.v_proj(x)).view(1, 70, 4, 16)
    shared = torch.tensor([0, 0, 1, 1])
    step = torch.nn.functional.softplus(mixer.a_proj(x) + mixer.dt_bias)
    expected, _ = delta_rule_reference(
        q[:, :, shared],
        k[:, :, shared],
        v,
        mixer.b_proj(x).sigmoid(),
        -mixer.A_log.exp() * step,
        normalize_qk=True,
    )
    torch.testing.assert_close(seen["output"], expected[0])


def test_fresh_decays():
    torch.manual_seed(0)
    policy = GatedDeltaNet(**tiny.SMALL | {"num_heads": 64, "head_dim": 2})
    mixer = policy.model.layers[0].attn
    rate = mixer.A_log.exp()
    assert 0 < rate.min() < 2
    assert 14 < rate.max() <= 16
    step = torch.nn.functional.softplus(mixer.dt_bias)
    assert 9e-4 < step.min() < 2e-3
    assert 0.05 < step.max() < 0.11


@pytest.mark.parametrize(
    "options",
    [
        {"attn": {"layers": [1]}},
        {"use_l2warp": True},
        {"hidden_act": "gelu"},
        {"attnres_block_size": 2},
        {"output_gate_activation": "tanh"},
        {"num_v_heads": 3},
        {"expand_v": 0.3},
    ],
    ids=str,
)
def test_what_would_be_wrong_is_refused(options):
    config = gated_delta_net().config()
    assert build(config, "config.json").config() == config
    with pytest.raises(CheckpointError):
        build(config | options, "config.json")
