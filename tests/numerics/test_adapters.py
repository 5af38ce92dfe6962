"""An adapter on every backbone: the gradients of A and B are those of the chain rule, no others.

    W' = W + s B A;   dA = s B^T dW',   dB = s dW' A^T

so an update of a frozen policy with an adapter is compared with one of the merged policy, whole.
"""

import pytest
import tiny
import torch
from adapted import HYBRIDS, MODELS, adapted, merged_copy, update

from refine_pl.adapters import frozen_copy, keep_frozen_in_16_bits
from refine_pl.adapters.targets import linear_maps
from refine_pl.refine_step import LossWeights

EVERY = MODELS | HYBRIDS
LENGTHS = [140, 97, 33, 12]  # the last one is too short for any position
CLOSE = {"rtol": 1e-8, "atol": 1e-11}


def chained(policy, whole):
    """The gradients of the adapter, from those of the merged weights."""
    expected = {}
    weights = dict(policy.named_parameters())
    for name in linear_maps(merged_copy(policy)):
        a, b = (weights[f"{name}.lora_{m}.default.weight"] for m in "AB")
        scale = policy.get_submodule(name).scaling["default"]
        gradient = whole[f"{name}.weight"]
        expected[f"{name}.lora_A.default.weight"] = scale * b.T @ gradient
        expected[f"{name}.lora_B.default.weight"] = scale * gradient @ a.T
    return expected


@pytest.mark.parametrize(("kind", "checkpointing"), [("joined", True), ("two_pass", False)])
@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_those_of_the_merged_policy(name, checkpointing, kind):
    policy = EVERY[name](activation_checkpointing=checkpointing)
    adapted(policy, use_rslora=checkpointing)
    batch = tiny.batch(LENGTHS, width=150, padding=3)
    whole = merged_copy(policy)
    loss, gradients, _ = update(kind, policy, batch)
    other, full, _ = update(kind, whole, batch)
    torch.testing.assert_close(loss, other, rtol=1e-10, atol=1e-10)
    expected = chained(policy, full)
    assert gradients.keys() == expected.keys()  # of the base there are none
    assert len(expected) == 2 * len(linear_maps(whole)) >= 28
    for key, value in expected.items():
        torch.testing.assert_close(gradients[key], value, **CLOSE, msg=key)
        assert value.abs().max() > 1e-7, key


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_is_the_policy_of_the_start_and_shares_the_base(name):
    policy = MODELS[name]()
    adapted(policy)
    reference = frozen_copy(policy)
    pairs = [
        (key, mine, theirs)
        for (key, mine), theirs in zip(
            policy.named_parameters(), reference.parameters(), strict=True
        )
    ]
    assert all((mine is theirs) == (".lora_" not in key) for key, mine, theirs in pairs)
    assert not any(p.requires_grad for p in reference.parameters())
    tokens = tiny.batch([40, 40]).tokens
    before = reference(tokens).hidden.clone()
    torch.testing.assert_close(policy(tokens).hidden, before, rtol=0, atol=0)
    with torch.no_grad():
        for p in policy.parameters():
            if p.requires_grad:
                p.add_(0.1)
    assert (policy(tokens).hidden - before).abs().max() > 1e-3
    torch.testing.assert_close(reference(tokens).hidden, before, rtol=0, atol=0)
    weights = LossWeights(1.0, 0.7, 0.3)
    _, gradients, means = update(
        "joined", policy, tiny.batch(LENGTHS), weights=weights, reference=reference
    )
    assert means["kl"] > 0
    assert all(".lora_" in key for key in gradients)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_frozen_base_in_16_bits_computes_the_same(name, tied):
    results = []
    for halved in (False, True):
        policy = MODELS[name](dtype=torch.float32, tie_word_embeddings=tied)
        adapted(policy)
        if halved:
            keep_frozen_in_16_bits(policy)
            small = {p.dtype for p in policy.parameters() if not p.requires_grad}
            assert small == {torch.float32, torch.bfloat16}
            assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
        results.append(update("joined", policy, tiny.batch(LENGTHS), autocast=in_bfloat16))
    (loss, gradients, _), (other, others, _) = results
    assert torch.equal(loss, other)
    assert all(torch.equal(gradients[key], others[key]) for key in gradients)
    assert len(gradients) >= 28


def in_bfloat16():
    """A new context each time: one that is entered within itself stays on when it is left."""
    return torch.autocast("cpu", torch.bfloat16)


def test_the_comparison_can_fail():
    policy = MODELS["DeltaNet"]()
    adapted(policy)
    whole = merged_copy(policy)
    with torch.no_grad():
        whole.model.layers[1].mlp.up_proj.weight.add_(1e-4)
    batch = tiny.batch(LENGTHS)
    _, gradients, _ = update("joined", policy, batch)
    expected = chained(policy, update("joined", whole, batch)[1])
    close = [torch.allclose(gradients[key], value, **CLOSE) for key, value in expected.items()]
    assert not any(close)
