"""The published DeltaNet's numbers, reproduced."""

import golden_checks
import pytest

from refine_pl.backbones import DeltaNet


@pytest.mark.parametrize("checkpointing", [False, True])
def test_logits_loss_and_gradients(checkpointing):
    policy = golden_checks.build(DeltaNet, "delta_net_base")
    policy.activation_checkpointing = checkpointing
    assert golden_checks.check(policy, "delta_net_base") == 31
