"""Small models, batches and parts that many tests use."""

import torch

from refine_pl.backbones import DeltaNet, LaCT
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch, Positions, RolloutPlan

SMALL = {
    "vocab_size": 23,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "initializer_range": 0.3,
}


def delta_net(seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    return DeltaNet(**SMALL | options).to(dtype)


def batch(lengths, width=None, vocab_size=23, seed=0, padding=0):
    """Random rows of the given lengths; what comes after them is ``padding``."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths) if width is None else width
    tokens = torch.full((len(lengths), width), padding, dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(0, vocab_size, (length,), generator=generator)
    return Batch(tokens, torch.tensor(lengths), tuple(range(len(lengths))))


def positions(index, valid=None):
    index = torch.tensor(index)
    return Positions(index, torch.ones_like(index, dtype=torch.bool) if valid is None else valid)


def randomness(num_rows, seed=0, update=0):
    return RowRandom(seed, update, range(num_rows))


def plan(segments=2, copies=1, length=3):
    return RolloutPlan(segments, copies, length)


def lact(seed=0, dtype=torch.float64, **options):
    """Rates are far from zero here: fresh ones hardly change the fast weights."""
    torch.manual_seed(seed)
    fields = {k: v for k, v in SMALL.items() if k != "num_heads"}
    fields |= {"num_attn_heads": 4, "num_lact_heads": 2, "lact_chunk_size": 8, "window_size": 12}
    policy = LaCT(**fields | {"newton_schulz_dtype": "float32"} | options).to(dtype)
    with torch.no_grad():
        for block in policy.model.layers:
            block.attn.lr_proj.bias.add_(4.0)
            block.attn.qk_offset.normal_(std=0.2)
            block.attn.qk_scale.add_(torch.randn_like(block.attn.qk_scale), alpha=0.2)
            if block.attn.qkv.bias is not None:
                block.attn.qkv.bias.normal_(std=0.2)
    return policy
