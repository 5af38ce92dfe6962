"""What a training run needs on paper: memory of a device, and traffic between devices.

Computed from sizes, never measured. For DeltaNet with AdamW, weights in float32, products in
bfloat16, recomputed activations and one sequence per micro-batch. Used by the docs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from refine_pl.backbones import DeltaNet
from refine_pl.backbones.stack import Block

GIB = 2**30
_ADAMW = 16  # bytes a parameter: weight, gradient and two moments in float32
_COMPUTE = 0.4 * 989e12  # FLOP/s: 40% of what an H100 does in bfloat16 by its data sheet
# Bytes/s of a device, one way, by data sheets: NVLink inside a machine, 400 Gb/s between machines.
_NVLINK, _NETWORK = 450e9, 50e9


@dataclass(frozen=True, slots=True)
class Model:
    """Sizes of a DeltaNet."""

    name: str
    hidden_size: int  # D
    layers: int
    heads: int
    vocab_size: int = 32_000

    @cache  # noqa: B019 - a handful of models, without weights
    def build(self) -> DeltaNet:
        """The model without memory for its weights."""
        with torch.device("meta"):
            return DeltaNet(
                vocab_size=self.vocab_size,
                hidden_size=self.hidden_size,
                num_hidden_layers=self.layers,
                num_heads=self.heads,
            )

    @property
    def state_bytes(self) -> int:
        """Of one position: float32 matrices, and the inputs of three convolutions in bfloat16."""
        width = self.hidden_size // self.heads
        return self.layers * (4 * self.hidden_size * width + 3 * 3 * self.hidden_size * 2)

    @property
    def trail_bytes_per_token(self) -> float:
        """Of recomputed activations: the mixers' inputs in bfloat16, float32 states every 512."""
        width = self.hidden_size // self.heads
        return self.layers * self.hidden_size * (2 + 4 * width / 512)


MODELS = (Model("1.3B", 2048, 24, 16), Model("7B", 4096, 32, 32))


@dataclass(frozen=True, slots=True)
class Need:
    """What one device of a run needs; memory in bytes."""

    processes: int
    fixed: float  # weights, gradients and moments
    gathered: float  # weights that are put together, in an update
    drawing: float  # weights that are put together while rollouts are drawn
    copies: float  # DDP's own of the gradients
    activations: float
    trail: float
    states: float  # that rollouts start from
    sent: float  # bytes of an update
    link: float  # bytes/s
    flop: float  # of an update

    @property
    def peak(self) -> float:
        """Of memory: the update, or the rollouts before it, in which there are no gradients."""
        update = self.fixed + self.copies + self.gathered + self.activations + self.trail
        return max(update, self.fixed * 3 / 4 + self.drawing + self.trail + self.states)

    @property
    def seconds(self) -> tuple[float, float]:
        """Of an update: for products at 40% of the peak, and for traffic at the link's speed."""
        return self.flop / _COMPUTE, self.sent / self.link


def need(
    model: Model,
    processes: int,
    strategy: Literal["ddp", "fsdp2"],
    *,
    tokens: int = 16_384,
    positions: int = 8,
    minibatch: int = 32,
) -> Need:
    """What a device needs for updates of ReFINE, one sequence at a time.

    Args:
        model: its sizes.
        processes: that share a mini-batch, one for each device.
        strategy: ``ddp`` keeps the model whole, ``fsdp2`` in parts.
        tokens: of a sequence, T.
        positions: of a sequence, S; their rollouts share their states.
        minibatch: sequences of an update; at least one for each process.
    """
    built = model.build()
    size = sum(p.numel() for p in built.parameters())
    block = max(sum(p.numel() for p in m.parameters()) for m in built.modules() if type(m) is Block)
    sharded = strategy == "fsdp2" and processes > 1
    share = processes if sharded else 1
    rows = math.ceil(minibatch / processes)
    away = (processes - 1) / processes  # of what all processes have, the part of the others
    # Sharded: for each sequence weights twice and gradients once, weights once more for rollouts.
    # Whole: a ring sums the gradients up and hands them out.
    passes = 3 * rows + 1 if sharded else 2
    inner = next(m for m in built.modules() if type(m) is Block).mlp.gate_proj.out_features
    return Need(
        processes,
        fixed=_ADAMW * size / share,
        gathered=4 * (2 * block + model.vocab_size * model.hidden_size) if sharded else 0,
        drawing=4 * size if sharded else 0,
        copies=0 if sharded or processes == 1 else 4 * size,
        # The residual stream before each block, and what one block keeps for its backward pass.
        activations=tokens * (4 * model.layers * model.hidden_size)
        + tokens * 2 * (10 * model.hidden_size + 3 * inner),
        trail=tokens * model.trail_bytes_per_token,
        states=positions * model.state_bytes,
        sent=4 * size * away * passes,
        link=_NVLINK if processes <= 8 else _NETWORK,
        # Prefill 2, update 6, and 2 more because activations are recomputed; see performance.md.
        flop=10 * size * tokens * rows,
    )


def markdown_table(models: Sequence[Model] = MODELS) -> str:
    """The plan for one device, a machine of eight, and eight machines, as a page shows it."""
    lines = [
        "| model | devices | strategy | weights, gradients, moments | put together | activations "
        "| trail | states | peak, GiB | sent per update, GB | products, s | traffic, s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model in models:
        for processes in (1, 8, 64):
            for strategy in ("ddp", "fsdp2") if processes > 1 else ("ddp",):
                lines.append(_row(model, strategy, need(model, processes, strategy)))
    return "\n".join(lines)


def _row(model: Model, strategy: str, plan: Need) -> str:
    memory = [
        plan.fixed + plan.copies,
        max(plan.gathered, plan.drawing),
        plan.activations,
        plan.trail,
        plan.states,
        plan.peak,
    ]
    cells = [f"{value / GIB:,.1f}" for value in memory]
    cells += [f"{plan.sent / 1e9:,.0f}", *(f"{value:,.2f}" for value in plan.seconds)]
    name = strategy if plan.processes > 1 else "none"
    return f"| {model.name} | {plan.processes} | {name} | " + " | ".join(cells) + " |"
