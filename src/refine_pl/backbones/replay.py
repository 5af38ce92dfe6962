"""One differentiable pass over sequences and their forks, where the forks become known on the way.

With activation checkpointing a block runs twice: forward, and once more in the backward pass. Here
the first time is without gradients, sequences first. Forks that were chosen after it are read layer
by layer from its trail. The second time is with gradients, sequences and forks together. Kept in
between are the inputs of the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from refine_kernels.host import known_on_host
from refine_pl.backbones.base import (
    Forks,
    LayerTrail,
    OpenPass,
    State,
    StateTrail,
    TokenLayout,
    layout_of,
)
from refine_pl.backbones.precision import precision_now


class Trunk(Protocol):
    """Blocks, and the norm after them."""

    layers: nn.ModuleList
    norm: nn.Module


class Stack(Protocol):
    """What is run of a model."""

    @property
    def embeddings(self) -> nn.Embedding:
        """Of the tokens."""

    @property
    def head(self) -> nn.Module:
        """The output layer."""

    @property
    def model(self) -> Trunk:
        """All but the head."""


class _OneState(StateTrail):
    """A trail that remembers the last state it gave: drawing and the update ask for the same."""

    __slots__ = ("given",)
    given: tuple[Tensor, State] | None

    def __init__(self, layers: tuple[LayerTrail, ...], num_tokens: Tensor) -> None:
        super().__init__(layers, num_tokens)
        object.__setattr__(self, "given", None)

    def at(self, positions: Tensor) -> State:
        if self.given is None or self.given[0] is not positions:
            with torch.no_grad():
                state = super().at(positions)
            object.__setattr__(self, "given", (positions, state))
        assert self.given is not None
        return self.given[1]


class ReplayedPass(OpenPass):
    """One whose blocks run again in the backward pass, with the forks.

    Until it is closed, ``hidden`` is differentiable up to the last block, and the trail not at all.
    """

    def __init__(self, policy: Stack, tokens: Tensor, num_tokens: Tensor) -> None:
        self.policy, self.tokens, self.num_tokens = policy, tokens, num_tokens
        self.precision = precision_now(tokens.device)
        trails = []
        with torch.no_grad(), self.precision():
            layout, flat = layout_of(tokens, num_tokens, None, lean=True)
            self.outputs = [policy.embeddings(flat)]  # of the embeddings and of each block
            for block in policy.model.layers:
                x, _, trail = block(self.outputs[-1], layout, None, True)
                self.outputs.append(x)
                trails.append(trail)
        self.last = self.outputs[-1].detach().requires_grad_()
        self.hidden = layout.split(policy.model.norm(self.last))[0]
        self.trail = _OneState(tuple(trails), torch.zeros_like(layout.num_tokens))

    def close(self, forks: Forks | None, *made: Tensor) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """See :class:`OpenPass`."""
        policy, trail = self.policy, self.trail
        assert trail is not None, "the pass was closed already"
        layout, flat = layout_of(self.tokens, self.num_tokens, forks)
        num_main = self.tokens.numel()
        fork_outputs: list[Tensor | None] = [None] * len(self.outputs)
        if forks is not None:
            fork_outputs = [*self._read(forks, flat[num_main:], trail)]
        self.trail = trail = None
        x, y = policy.embeddings(flat).split([num_main, len(flat) - num_main])
        fork: Tensor | None = None if forks is None else y
        outputs, self.outputs = self.outputs, []
        outputs[0] = x
        for i, block in enumerate(policy.model.layers):
            run = _Run(block, layout, num_main, self.precision)
            known = outputs[i + 1], fork_outputs[i + 1]
            outputs[i] = x  # those that were computed first are not needed any more
            x, fork = _Replay.apply(run, x, fork, *known, *run.parameters)
        head = [p for m in (policy.model.norm, policy.head) for p in m.parameters()]
        parameters = [p for p in head if p.requires_grad]
        joined = _Late.apply((self.last, made, parameters), x, *parameters)
        if forks is None or fork is None:
            return None, joined
        return policy.model.norm(fork).view(*forks.tokens.shape, -1), joined

    @torch.no_grad()
    def _read(self, forks: Forks, flat: Tensor, trail: StateTrail) -> list[Tensor]:
        """The forks' tokens ``flat [M]`` through the embeddings and each block."""
        copies, length = forks.tokens.shape[2:]
        rows = len(flat) // length
        lengths = torch.full((rows,), length, device=flat.device)
        known_on_host(lengths, torch.full((rows,), length))
        layout = TokenLayout(rows, length, lengths)
        known_on_host(layout.ends, torch.full((rows, 1), length))
        state = trail.at(forks.positions).fork(copies)
        with self.precision():
            outputs = [self.policy.embeddings(flat)]
            for block, layer in zip(self.policy.model.layers, state.layers, strict=True):
                outputs.append(block(outputs[-1], layout, layer, False)[0])
        return outputs


class _Run:
    """A block over sequences and forks."""

    def __init__(
        self, block: nn.Module, layout: TokenLayout, num_main: int, precision: Callable[[], Any]
    ) -> None:
        self.block, self.layout, self.num_main = block, layout, num_main
        self.precision = precision
        self.parameters = tuple(p for p in block.parameters() if p.requires_grad)

    def __call__(self, x: Tensor, fork: Tensor | None) -> list[Tensor]:
        with self.precision():
            rows = x if fork is None else torch.cat([x, fork])
            y: Tensor = self.block(rows, self.layout, None, False)[0]
        return [y] if fork is None else list(y.split([len(x), len(fork)]))


class _Replay(torch.autograd.Function):
    """A block whose output is known: only its backward computes anything, the block's forward too.

    Parameters are given so that their gradients take the usual way, with whatever waits for them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        run: _Run,
        x: Tensor,
        fork: Tensor | None,
        known: Tensor,
        known_fork: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.run = run
        ctx.save_for_backward(x, fork)
        return known, known_fork

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs = [None if x is None else x.detach().requires_grad_() for x in ctx.saved_tensors]
        x, fork = inputs
        with torch.enable_grad():
            outputs = ctx.run(x, fork)
        given = [x for x in inputs if x is not None]
        found = torch.autograd.grad(
            outputs, (*given, *ctx.run.parameters), gradients[: len(given)], allow_unused=True
        )
        d_fork = None if fork is None else found[1]
        return None, found[0], d_fork, None, None, *found[len(given) :]


class _Late(torch.autograd.Function):
    """What was made of a tensor before the graph that the tensor belongs to."""

    @staticmethod
    def forward(
        ctx: Any,
        how: tuple[Tensor, tuple[Tensor, ...], list[Tensor]],
        last: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.how = how
        ctx.set_materialize_grads(False)
        return tuple(x.detach() for x in how[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.how is None:
            raise RuntimeError("trying to backward through a closed pass a second time")
        leaf, made, parameters = ctx.how
        used = [(x, d) for x, d in zip(made, gradients, strict=True) if d is not None]
        if not used:
            return None, None, *(None for _ in parameters)
        outputs, given = zip(*used, strict=True)
        again = torch._C._autograd._get_current_graph_task_keep_graph()
        found = torch.autograd.grad(
            outputs, (leaf, *parameters), given, allow_unused=True, retain_graph=again
        )
        if not again:
            ctx.how = None  # else what it was made from would stay for as long as the result does
        return None, *found
