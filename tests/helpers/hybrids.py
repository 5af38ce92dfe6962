"""Small hybrids: delta rules with layers of softmax attention between them."""

import tiny
import torch

from refine_pl.backbones import DeltaNet, GatedDeltaNet, OlmoHybrid, Qwen35

HEADS = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 6,
}
SIZES = {
    "vocab_size": 23,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "initializer_range": 0.3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "pad_token_id": None,
} | HEADS
ATTENTION = {"layers": [1], "num_heads": 4, "num_kv_heads": 2, "qkv_bias": True}


def delta_net(dtype=torch.float64, **options):
    """One layer of attention, over everything before."""
    torch.manual_seed(0)
    return _lively(DeltaNet(**tiny.SMALL | {"attn": ATTENTION} | options), dtype)


def gated_delta_net(dtype=torch.float64, **options):
    """Two layers of attention, one with a window."""
    torch.manual_seed(0)
    window = {"layers": [0], "num_heads": 2, "num_kv_heads": 1, "window_size": 12}
    attn = [window, {"layers": [2], "num_heads": 2, "rope_theta": 100.0}]
    fields = {"num_hidden_layers": 3, "head_dim": 8, "attn": attn}
    return _lively(GatedDeltaNet(**tiny.SMALL | fields | options), dtype)


def qwen35(dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    rope = {"rope_theta": 100.0, "partial_rotary_factor": 0.5}
    return _lively(Qwen35(**SIZES | {"head_dim": 8, "rope_parameters": rope} | options), dtype)


def olmo_hybrid(dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    return _lively(OlmoHybrid(**SIZES | {"rope_parameters": {"rope_theta": 50.0}} | options), dtype)


def _lively(policy, dtype):
    """Fresh norms and biases are ones and zeros: what depends on them would not be seen."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return policy.to(dtype)


MODELS = {
    "DeltaNet": delta_net,
    "GatedDeltaNet": gated_delta_net,
    "Qwen35": qwen35,
    "OlmoHybrid": olmo_hybrid,
}
