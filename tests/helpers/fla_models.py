"""Models of flash-linear-attention's own classes, and ours with the same weights."""

import tempfile

import torch
from closeness import logits_of, relative

from refine_pl.backbones import load_pretrained, save_pretrained

SIZES = {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 1, "num_heads": 2}
SIZES["initializer_range"] = 0.1  # the layers weigh as much as the embeddings
LENGTH = 67  # a full chunk and three tokens; up to 64 another kernel reads token by token
OPTIONS = {
    "delta_net": [
        {"num_hidden_layers": 2},
        {"use_gate": True, "tie_word_embeddings": True, "allow_neg_eigval": True, "conv_size": 3},
        {"use_short_conv": False, "use_beta": False, "qk_activation": "identity", "qk_norm": "sum"},
        {"num_hidden_layers": 2, "attn": {"layers": [0], "num_heads": 2, "num_kv_heads": 1}},
    ],
    "gated_deltanet": [
        {"num_hidden_layers": 2, "head_dim": 32, "num_v_heads": 4},
        {"head_dim": 48, "expand_v": 1.0, "use_gate": False, "allow_neg_eigval": True},
        {"head_dim": 32, "output_gate_activation": "sigmoid", "use_short_conv": False},
        {
            "num_hidden_layers": 3,
            "head_dim": 32,
            "attn": [
                {"layers": [1], "num_heads": 4, "window_size": 9, "qkv_bias": True},
                {"layers": [0], "num_heads": 2, "rope_theta": 50.0},
            ],
        },
    ],
}


@torch.no_grad()
def spread_norms(model):
    """Fresh norms multiply by one: a weight that is never read would not be seen."""
    for name, weight in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            weight.uniform_(0.5, 1.5)
    return model


def in_their_classes(policy):
    """As a user of the exported folder would load it."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(policy, folder)
        return AutoModelForCausalLM.from_pretrained(folder).eval()


def published(kind, device="cpu", dtype=torch.float32, length=LENGTH, **sizes):
    """What their classes initialised and saved, and the gradients of its next-token loss.

    Returns:
        Errors of logits and loss, and those of the gradients by name.
    """
    import fla  # noqa: F401 - tells transformers its kinds of models
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {**SIZES, **OPTIONS[kind][0], "num_hidden_layers": 1, **sizes}
    # The fused loss takes no tensors of the CPU. It is the same loss.
    config = AutoConfig.for_model(kind, **options, fuse_cross_entropy=False)
    theirs = spread_norms(AutoModelForCausalLM.from_config(config))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_pretrained(folder)
    ours, theirs = (model.to(device, dtype) for model in (ours, theirs))
    tokens = torch.randint(0, 97, (2, length), device=device)
    expected = theirs(input_ids=tokens, labels=tokens)
    hidden = ours(tokens).hidden[:, :-1]
    loss = -ours.head(hidden.flatten(0, 1), tokens[:, 1:].flatten()).logprob.mean()
    expected.loss.backward()
    loss.backward()
    return {
        "published": relative(logits_of(ours, tokens), expected.logits),
        "loss": relative(loss, expected.loss),
        "gradients": {
            name: relative(ours.get_parameter(name).grad, weight.grad)
            for name, weight in theirs.named_parameters()
        },
    }
