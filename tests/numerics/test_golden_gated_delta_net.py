"""The published GatedDeltaNet's numbers, reproduced."""

import golden_checks
import pytest

from refine_pl.backbones import GatedDeltaNet


@pytest.mark.parametrize("checkpointing", [False, True])
def test_logits_loss_and_gradients(checkpointing):
    policy = golden_checks.build(GatedDeltaNet, "gated_delta_net_base")
    policy.activation_checkpointing = checkpointing
    assert golden_checks.check(policy, "gated_delta_net_base") == 39


def test_configuration_is_the_published_one():
    policy = golden_checks.build(GatedDeltaNet, "gated_delta_net_base")
    published = golden_checks.config("gated_delta_net_base")
    assert {k: v for k, v in policy.config().items() if k in published} == published
