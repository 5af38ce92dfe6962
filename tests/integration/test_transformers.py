"""Exported folders in transformers, with flash-linear-attention's own model classes."""

import pytest
import torch

from refine_pl.backbones import DeltaNet, GatedDeltaNet, save_pretrained

SIZES = {"vocab_size": 97, "hidden_size": 128, "num_hidden_layers": 2, "initializer_range": 0.05}
MODELS = {
    "delta_net": (DeltaNet, {"num_heads": 2}),
    "delta_net, gated, tied": (
        DeltaNet,
        {"num_heads": 2, "use_gate": True, "tie_word_embeddings": True},
    ),
    "gated_deltanet": (GatedDeltaNet, {"num_heads": 2, "head_dim": 32, "num_v_heads": 4}),
}


def export(name, folder):
    torch.manual_seed(0)
    cls, fields = MODELS[name]
    policy = cls(**SIZES, **fields)
    save_pretrained(policy, folder)
    return policy


def load(folder):
    """As a user of the exported folder would."""
    pytest.importorskip("triton", reason="flash-linear-attention needs it to be imported")
    import fla  # noqa: F401 - tells transformers its kinds of models
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_is_found(name, tmp_path):
    ours = export(name, tmp_path)
    theirs, found = load(tmp_path)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.model_type == ours.config()["model_type"]
    weights = theirs.state_dict()
    assert weights.keys() == ours.state_dict().keys()
    assert all(torch.equal(weights[key], tensor) for key, tensor in ours.state_dict().items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="its kernels need CUDA")
@pytest.mark.parametrize("name", MODELS)
def test_same_logits(name, tmp_path):
    ours = export(name, tmp_path).cuda().bfloat16()
    theirs = load(tmp_path)[0].cuda().bfloat16()
    tokens = torch.randint(0, 97, (2, 300), device="cuda")
    with torch.no_grad():
        expected = theirs(input_ids=tokens).logits.double()
        got = ours.head(ours(tokens).hidden.flatten(0, 1), logits=True).logits.double()
    assert (got.view_as(expected) - expected).norm() < 0.03 * expected.norm()
