"""Hooks that set a module's weight on each call, as pruning has them, see every module called."""

import pytest
import tiny
import torch
from single_updates import LENGTHS, MODELS, update
from torch import nn
from torch.nn.utils import prune

from refine_pl.backbones.delta_rule_layer import ShortConv

NAMES = ("weight", "bias")


def prunable(policy):
    """What Lightning's ``ModelPruning`` takes if it is not told: weights and biases."""
    for module in policy.modules():
        for name in NAMES:
            if isinstance(module._parameters.get(name), nn.Parameter):
                yield module, name


def prune_nothing(policy):
    found = list(prunable(policy))
    for module, name in found:
        prune.identity(module, name)
    return len(found)


def gradients(policy, options):
    """Of two updates, each through a graph of its own."""
    batch = tiny.batch(LENGTHS, width=150, padding=3)
    update(policy=policy, batch=batch, **options)
    return update(policy=policy, batch=batch, **options)[1]


@pytest.mark.parametrize("kind", ["joined", "two_pass"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_weights_of_hooks_get_the_same_gradients(name, checkpointing, kind):
    plain, pruned = (MODELS[name](activation_checkpointing=checkpointing) for _ in range(2))
    options = {"kind": kind}
    expected = gradients(plain, options)
    assert prune_nothing(pruned) == len(list(prunable(plain))) >= 17
    found = {n.removesuffix("_orig"): g for n, g in gradients(pruned, options).items()}
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-10, atol=1e-12, msg=key)


def test_a_weight_that_is_read_beside_the_module_is_noticed(monkeypatch):
    """The broken case."""
    call = ShortConv.__call__
    beside = lambda conv, x, tail: conv.weight if x is None else call(conv, x, tail)  # noqa: E731
    monkeypatch.setattr(ShortConv, "__call__", beside)
    pruned = tiny.delta_net()
    prune_nothing(pruned)
    with pytest.raises(RuntimeError, match="second time"):
        gradients(pruned, {"kind": "joined"})
