"""Small hybrids: delta rules with layers of softmax attention between them."""

import tiny
import torch

from refine_pl.backbones import DeltaNet, GatedDeltaNet

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


def _lively(policy, dtype):
    """Fresh norms and biases are ones and zeros: what depends on them would not be seen."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name.endswith(("norm.weight", "bias", "layernorm.weight")):
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return policy.to(dtype)


MODELS = {"DeltaNet": delta_net, "GatedDeltaNet": gated_delta_net}
