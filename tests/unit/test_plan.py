"""The plan for large runs counts as the code does, and the page prints what it computes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from refine_pl.backbones import DeltaNet
from refine_pl.benchmark.plan import MODELS, Model, markdown_table, need

PAGE = Path(__file__).parents[2] / "docs" / "clusters.md"
SMALL = Model("small", 256, 2, 2, vocab_size=64)


def test_sizes_are_those_of_the_models():
    sizes = {m.name: sum(p.numel() for p in m.build().parameters()) for m in MODELS}
    assert sizes["1.3B"] == 1_365_677_056  # as published
    assert sizes["7B"] == pytest.approx(7e9, rel=0.05)


def test_states_and_trails_take_what_is_planned():
    sizes = {"hidden_size": 256, "num_hidden_layers": 2, "num_heads": 2}
    policy = DeltaNet(vocab_size=64, activation_checkpointing=True, **sizes)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = policy(torch.zeros(1, 1024, dtype=torch.int64), keep_trail=True)
    assert output.state.nbytes == SMALL.state_bytes
    kept = [layer.x.nbytes + layer.states.nbytes for layer in output.trail.layers]
    assert sum(kept) == 1024 * SMALL.trail_bytes_per_token


def test_shares_add_up():
    size = sum(p.numel() for p in SMALL.build().parameters())
    for processes in (2, 8, 64):
        sharded, whole = (need(SMALL, processes, strategy) for strategy in ("fsdp2", "ddp"))
        assert sharded.fixed * processes == whole.fixed == 16 * size
        assert sharded.drawing == whole.copies == 4 * size
        # A ring sends what the others have twice: to sum up, and to hand out.
        assert whole.sent * processes == 2 * 4 * size * (processes - 1)
        assert sharded.sent == whole.sent / 2 * (3 * max(32 // processes, 1) + 1)
    alone = need(SMALL, 1, "fsdp2")
    assert alone == need(SMALL, 1, "ddp")
    assert alone.sent == alone.copies == alone.drawing == 0
    # As many products on any number of devices, as long as each has a sequence.
    assert need(SMALL, 8, "ddp").flop * 8 == alone.flop


def test_longer_sequences_and_wider_models_need_more():
    first = need(SMALL, 8, "fsdp2", tokens=1024)
    longer = need(SMALL, 8, "fsdp2", tokens=2048)
    assert (longer.activations, longer.trail) == (2 * first.activations, 2 * first.trail)
    assert longer.fixed == first.fixed
    assert need(replace(SMALL, layers=4), 8, "fsdp2", tokens=1024).peak > first.peak


def test_the_page_prints_the_table():
    lines = markdown_table().splitlines()
    assert len(lines) == 2 + 5 * len(MODELS)
    assert markdown_table() in PAGE.read_text()
