"""The published model code's numbers, reproduced."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from refine_pl.backbones import DeltaNet

FOLDER = Path(__file__).parents[1] / "golden" / "delta_net_base"


@pytest.fixture(scope="module")
def policy():
    config = json.loads((FOLDER / "config.json").read_text())
    config = {k: v for k, v in config.items() if k not in ("architectures", "model_type")}
    policy = DeltaNet(**config)
    policy.load_state_dict(load_file(FOLDER / "model.safetensors"))
    return policy


def relative(got, expected):
    return float((got - expected).norm().detach() / expected.norm())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_logits_loss_and_gradients(policy, checkpointing):
    expected = load_file(FOLDER / "expected.safetensors")
    policy.activation_checkpointing = checkpointing
    tokens = expected["input_ids"]
    hidden = policy(tokens).hidden
    assert relative(hidden, expected["last_hidden"]) < 1e-5
    logits = policy.head(hidden.flatten(0, 1), logits=True).logits
    assert relative(logits.view_as(expected["logits"]), expected["logits"]) < 1e-5

    stats = policy.head(hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss = -stats.logprob.mean()
    assert relative(loss, expected["loss"]) < 1e-5
    policy.zero_grad()
    loss.backward()
    compared = 0
    for name, parameter in policy.named_parameters():
        assert relative(parameter.grad, expected[f"grad/{name}"]) < 1e-4, name
        compared += 1
    assert compared == len([k for k in expected if k.startswith("grad/")]) == 31
