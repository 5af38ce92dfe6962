"""What states of the published sizes take, as the pages of the backbones say it."""

from pathlib import Path

import pytest
import torch

from refine_pl.backbones import DeltaNet, GatedDeltaNet, LaCT

DOCS = Path(__file__).parents[2] / "docs"
LAYERS = 24
MIB = 2**20
SMALL = {"vocab_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}


def read(policy, length, **options):
    """One layer over some tokens, with activations in bfloat16 as on a GPU."""
    tokens = torch.zeros(1, length, dtype=torch.int64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return policy(tokens, **options)


def said(page, text):
    return text in (DOCS / page).read_text()


@pytest.mark.parametrize(
    ("page", "policy", "width", "state", "trail", "lean"),
    [
        ("delta_net", DeltaNet(hidden_size=2048, num_heads=16, **SMALL), 128, 24.84, 576, 144),
        (
            "gated_delta_net",
            GatedDeltaNet(hidden_size=2048, num_heads=8, head_dim=256, expand_v=1, **SMALL),
            256,
            48.84,
            960,
            192,
        ),
    ],
)
def test_delta_rule(page, policy, width, state, trail, lean):
    output = read(policy, 192, keep_trail=True)
    tails = 3 * 3 * 2048 * 2
    assert output.state.nbytes == 4 * 2048 * width + tails
    assert output.state.nbytes * LAYERS / MIB == pytest.approx(state, abs=0.01)
    at = output.trail.at(torch.tensor([[70]]))
    assert at.nbytes == output.state.nbytes
    assert at.fork(8).nbytes - at.nbytes == 7 * tails
    kept = output.trail.layers[0].rule.trail
    per_token = (kept.states.nbytes + kept.u.nbytes) / 192
    assert per_token == 4 * 2048 * (width / 64 + 1)
    assert per_token * LAYERS / 1024 == trail
    policy.activation_checkpointing = True
    small = read(policy, 1024, keep_trail=True).trail.layers[0]
    assert (small.x.nbytes + small.states.nbytes) * LAYERS / 1024**2 == lean
    whole, kept = (kib / 1024 * 16 for kib in (trail, lean))
    for text in (f"{state:.1f} MiB", f"{whole:.0f} GiB for 16,384 tokens", "0.8 MiB"):
        assert said(f"backbones/{page}.md", text)
    assert said(f"backbones/{page}.md", f"{lean / 1024:.2f} MiB")
    assert said(f"backbones/{page}.md", f"{kept:.2f} GiB for 16,384 tokens")
    assert said("backbones.md", f"{state:.1f} MiB")


def test_lact():
    policy = LaCT(hidden_size=1536, num_attn_heads=24, num_lact_heads=4, w0_w2_low_rank=32, **SMALL)
    output = read(policy, 4095, keep_trail=True)  # all but one token of a second chunk
    weights, token = 2 * 3 * 4 * 4 * 384**2, 2 * 1536 * 2
    rates_and_momentum = 12 * 4 + 4 * 2
    assert output.state.nbytes == weights + 2047 * (2 * token + rates_and_momentum)
    assert weights * LAYERS / MIB == 324
    assert output.state.nbytes * LAYERS / MIB == pytest.approx(902, abs=1)
    one = output.trail.at(torch.tensor([[3000]]))
    more = output.trail.at(torch.tensor([[2100, 2500, 3000, 4000]]))
    assert more.nbytes == one.nbytes  # all in one chunk
    other = output.trail.at(torch.tensor([[100, 3000]]))
    assert other.nbytes - one.nbytes == weights
    assert one.fork(8).nbytes == one.nbytes
    kept = output.trail.layers[0]
    for x in (kept.seen.source.keys, kept.seen.source.values, *kept.fast.tokens):
        assert x.untyped_storage().nbytes() == x.nbytes  # no part of what was more
    both = other.layers[0].fast.bank.states.applied
    assert both.w1.data_ptr() == kept.fast.entering.chunks[0].applied.w1.data_ptr()  # not copied
    for text in ("324 MiB", "up to 900 MiB"):
        assert said("backbones/lact.md", text)
        assert said("backbones.md", text)
