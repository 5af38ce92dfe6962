"""What a forward keeps needs no weights any more: sharded ones are gone by then."""

import pytest
import tiny
import torch

from refine_pl.backbones import GatedDeltaNet

TOKENS = torch.arange(12).view(1, 12)


def gated_delta_net():
    torch.manual_seed(0)
    return GatedDeltaNet(**tiny.SMALL | {"head_dim": 8}).double()


def tensors(state):
    return [t.clone() for layer in state.layers for t in layer.tensors()]


def spoil(policy):
    for parameter in policy.parameters():
        parameter.data.fill_(torch.nan)


@pytest.mark.parametrize("make", [tiny.delta_net, gated_delta_net, tiny.lact])
@pytest.mark.parametrize("position", [3, 11])
def test_states_without_weights(make, position):
    policy, place = make(), torch.tensor([[position]])
    with torch.no_grad():
        output = policy(TOKENS, keep_trail=True)
    before = [tensors(output.trail.at(place)), tensors(output.state)]
    spoil(policy)
    after = [tensors(output.trail.at(place)), tensors(output.state)]
    for one, other in zip(before, after, strict=True):
        assert one
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(b, a, rtol=0, atol=0)
    assert policy(TOKENS).hidden.isnan().any()
