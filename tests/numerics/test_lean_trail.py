"""A trail that keeps little gives the states that a whole one gives."""

import pytest
import tiny
import torch

from refine_kernels.delta_rule import trail as whole_trail
from refine_pl.backbones import GatedDeltaNet
from refine_pl.backbones.delta_rule_states import DeltaRuleLayerTrail
from refine_pl.backbones.lean_trail import LeanTrail

LENGTHS = [300, 140, 20]


def gated_delta_net(**options):
    torch.manual_seed(0)
    return GatedDeltaNet(**tiny.SMALL | {"head_dim": 8} | options).double()


@pytest.fixture(params=[1, 2, 8])
def _every(request, monkeypatch):
    """Pieces of 64, 128 and 512 tokens."""
    monkeypatch.setattr(whole_trail, "EVERY", request.param)


def positions(seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(0, n + 1, (9,), generator=generator).tolist() for n in LENGTHS]
    edges = [[0, n, min(n, 64), min(n, 128), min(n, 65)] for n in LENGTHS]
    return torch.tensor([a + b for a, b in zip(drawn, edges, strict=True)])


@torch.no_grad()
def trails(make, before=None, **options):
    batch, kept = tiny.batch(LENGTHS), []
    for again, kind in ((False, DeltaRuleLayerTrail), (True, LeanTrail)):
        policy = make(activation_checkpointing=again, **options)
        state = policy(before).state if before is not None else None
        trail = policy(batch.tokens, batch.num_tokens, state=state, keep_trail=True).trail
        assert all(type(layer) is kind for layer in trail.layers)
        kept.append(trail)
    return kept


def assert_same(one, other, **close):
    for first, second in zip(one.layers, other.layers, strict=True):
        for a, b in zip(first.tensors(), second.tensors(), strict=True):
            torch.testing.assert_close(b, a, **close)


@pytest.mark.usefixtures("_every")
@pytest.mark.parametrize("make", [tiny.delta_net, gated_delta_net])
@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("continued", [False, True])
def test_it_gives_the_same_states(make, convolutions, continued):
    before = tiny.batch([5, 5, 5], seed=3).tokens if continued else None
    whole, lean = trails(make, before, use_short_conv=convolutions)
    for seed in range(2):
        at = positions(seed)
        assert_same(whole.at(at), lean.at(at), rtol=1e-12, atol=1e-12)
        assert torch.equal(whole.at(at).num_tokens, lean.at(at).num_tokens)


def test_in_the_types_of_its_pass():
    """Its pieces are read under the autocast of the pass, wherever they are asked for."""
    with torch.autocast("cpu", torch.bfloat16):
        whole, lean = trails(lambda **o: tiny.delta_net(dtype=torch.float32, **o))
    assert lean.layers[0].x.dtype == torch.bfloat16
    at = positions(0)
    assert_same(whole.at(at), lean.at(at), rtol=0.02, atol=0.02)


def test_another_layers_inputs_are_noticed():
    """The broken case."""
    whole, lean = trails(tiny.delta_net)
    lean.layers[0].x[0, 3] += 1e-3
    with pytest.raises(AssertionError):
        assert_same(whole.at(positions(0)), lean.at(positions(0)), rtol=1e-6, atol=1e-6)


def test_with_gradients_it_is_whole():
    """There a trail is differentiable, and its parts are kept for the backward pass anyway."""
    policy = tiny.delta_net(activation_checkpointing=True)
    trail = policy(tiny.batch(LENGTHS).tokens, keep_trail=True).trail
    assert type(trail.layers[0]) is DeltaRuleLayerTrail
    assert trail.at(positions(0)).layers[0].rule.matrix.requires_grad
