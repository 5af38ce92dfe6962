"""Exported and published models in flash-linear-attention's own classes, without a GPU.

Both sides compute in float32, theirs with its Triton kernels in Triton's interpreter. Each kind of
model is compared in a process of its own, which is this file run as a script.
"""

import importlib
import json
import sys

import interpreted
import interpreted_fla
import pytest
import torch
from closeness import logits_of, relative
from fla_models import LENGTH, OPTIONS, SIZES, in_their_classes, published, spread_norms

from refine_pl.backbones import DeltaNet, GatedDeltaNet

pytestmark = pytest.mark.slow

CLOSE = 1e-5
CLOSE_GRADIENT = 1e-4  # sums over all tokens, some of them nearly zero
# The decay's two vectors have one sum over all tokens for a head, of terms that all but cancel:
# with these weights our own gradients in float32 are 5e-5 from those in float64.
CLOSE_OF = {"model.layers.0.attn.A_log": 1e-3, "model.layers.0.attn.dt_bias": 1e-3}


@pytest.mark.parametrize("kind", OPTIONS)
def test_models(kind):
    pytest.importorskip("triton")
    errors = interpreted.run(__file__, kind)
    assert all(error < CLOSE for error in errors["exported"]), errors
    assert len(errors["exported"]) == len(OPTIONS[kind])
    assert errors["one weight changed"] > 100 * CLOSE
    assert errors["generated"] < CLOSE
    assert max(errors["published"], errors["loss"]) < CLOSE
    assert errors["gradients"]
    far = {
        name: error
        for name, error in errors["gradients"].items()
        if error >= CLOSE_OF.get(name, CLOSE_GRADIENT)
    }
    assert not far


def test_our_path_through_its_kernels():
    pytest.importorskip("triton")
    errors = interpreted.run(__file__, "delta_rule")
    compared = {"output", "state", "states", "dq", "dk", "dv", "dbeta", "dinitial_state"}
    assert errors["no decay"].keys() == compared
    assert errors["decay"].keys() == compared | {"dlog_decay"}
    assert all(error < CLOSE for part in errors.values() for error in part.values()), errors


@torch.no_grad()
def exported(kind):
    errors = {"exported": []}
    tokens = torch.randint(0, 97, (2, LENGTH))
    cls = {"delta_net": DeltaNet, "gated_deltanet": GatedDeltaNet}[kind]
    policies = [spread_norms(cls(**SIZES | options)) for options in OPTIONS[kind]]
    for policy in policies:
        expected = in_their_classes(policy)(input_ids=tokens).logits
        errors["exported"].append(relative(logits_of(policy, tokens), expected))
    policies[-1].model.layers[0].attn.k_proj.weight[0, 0] += 1
    errors["one weight changed"] = relative(logits_of(policies[-1], tokens), expected)
    errors["generated"] = generated(policies[0])
    return errors


@torch.no_grad()
def generated(policy):
    """Their logits of three tokens, each from the state behind the one before, against ours."""
    answer = in_their_classes(policy).generate(
        input_ids=torch.randint(0, 97, (1, 5)),
        max_new_tokens=3,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    got = logits_of(policy, answer.sequences)[:, -4:-1]
    return relative(got, torch.stack(answer.logits, 1))


def our_path(decay):
    """Outputs, states and gradients of the delta rule by both of our implementations."""
    from refine_kernels.delta_rule import delta_rule, fla_backend

    fla_backend.TRAIL_TOKENS = 64  # several pieces of a short row
    length = 100 if decay else 128  # with and without a rest
    q, k, v = (torch.randn(2, length, 2, width) for width in (32, 32, 48))
    inputs = {"q": q, "k": k, "v": v, "beta": torch.rand(2, length, 2)}
    if decay:
        inputs["log_decay"] = -torch.rand(2, length, 2)
    inputs["initial_state"] = torch.randn(2, 2, 32, 48)
    positions = torch.tensor([[0, 1, 63, length], [64, 65, 80, length - 1]])
    results = []
    for backend in ("fla", "torch"):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        out = delta_rule(**leaves, normalize_qk=True, keep_trail=True, backend=backend)
        states = out.trail.at(positions)
        loss = out.output.sin().sum() + states.sin().sum() + out.state.cos().sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        named = zip((f"d{name}" for name in leaves), gradients, strict=True)
        results.append({"output": out.output, "state": out.state, "states": states, **dict(named)})
    got, expected = results
    return {name: relative(got[name], tensor) for name, tensor in expected.items()}


def main(kind):
    interpreted_fla.prepare()
    importlib.import_module("fla")  # tells transformers its kinds of models
    torch.manual_seed(0)
    if kind == "delta_rule":
        errors = {"no decay": our_path(decay=False), "decay": our_path(decay=True)}
    else:
        errors = exported(kind) | published(kind)
    print(json.dumps(errors))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
