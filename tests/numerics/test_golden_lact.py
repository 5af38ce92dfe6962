"""The published LaCT's numbers, reproduced."""

import golden_checks
import pytest

from refine_pl.backbones import LaCT


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("name", "gradients"), [("lact_momentum", 45), ("lact_fp32", 47)])
def test_logits_loss_and_gradients(name, gradients, checkpointing):
    policy = golden_checks.build(LaCT, name)
    policy.activation_checkpointing = checkpointing
    assert golden_checks.check(policy, name) == gradients


@pytest.mark.parametrize("name", ["lact_momentum", "lact_fp32"])
def test_configuration_is_the_published_one(name):
    policy = golden_checks.build(LaCT, name)
    published = golden_checks.config(name)
    assert {k: v for k, v in policy.config().items() if k in published} == published
