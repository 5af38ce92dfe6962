"""Checkpoints in ``tests/golden`` and what the published model code computes with them."""

import json
from pathlib import Path

import torch
from closeness import relative
from safetensors.torch import load_file

from refine_pl.backbones.pretrained import class_fields
from refine_pl.evaluation.generation import continue_prompts, greedy
from refine_pl.records import Batch

FOLDER = Path(__file__).parents[1] / "golden"


def config(name):
    return json.loads((FOLDER / name / "config.json").read_text())


def build(backbone, name, **options):
    policy = backbone(**class_fields(config(name), name) | options)
    policy.load_state_dict(load_file(FOLDER / name / "model.safetensors"))
    return policy


def check(policy, name):
    """Hidden states, logits, loss and all gradients; returns how many gradients there were."""
    expected = load_file(FOLDER / name / "expected.safetensors")
    loss = check_outputs(policy, expected)
    policy.zero_grad()
    loss.backward()
    compared = 0
    for key, parameter in policy.named_parameters():
        assert relative(parameter.grad, expected[f"grad/{key}"]) < 1e-4, key
        compared += 1
    assert compared == len([key for key in expected if key.startswith("grad/")])
    return compared


def check_outputs(policy, expected):
    """Hidden states, logits and the loss, which is returned."""
    tokens = expected["input_ids"]
    hidden = policy(tokens).hidden
    assert relative(hidden, expected["last_hidden"]) < 1e-5
    logits = policy.head(hidden.flatten(0, 1), logits=True).logits
    assert relative(logits.view_as(expected["logits"]), expected["logits"]) < 1e-5
    stats = policy.head(hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss = -stats.logprob.mean()
    assert relative(loss, expected["loss"]) < 1e-5
    return loss


def check_greedy(policy, name):
    """The greedy continuation of the first 33 tokens, decoded from states; how many there were."""
    expected = load_file(FOLDER / name / "expected.safetensors")
    tokens, wanted = expected["input_ids"][:, :33], expected["greedy_from_33"]
    prompts = Batch(tokens, torch.tensor([33] * len(tokens)), tuple(range(len(tokens))))
    budgets = torch.tensor([wanted.shape[1]] * len(tokens))
    made = continue_prompts(policy, prompts, budgets, eos_token_id=None, choose=greedy)
    assert torch.equal(made.tokens, wanted)
    return made.tokens.numel()
