"""The contract of every fast-weight language model, and the records that cross it.

A fast-weight model keeps its context in a state of fixed size; a hybrid keeps keys and values
beside it, in some layers. Three things follow, and the rest of the project rests on them: one pass
gives the state after any number of its tokens (a *trail*), many continuations can start from it
(*forks*), and decoding reads states and never the prompt again.

Letters: ``B`` sequences, ``T`` tokens, ``S`` positions per sequence, ``N`` forks per position,
``L`` fork tokens, ``R`` rows of a state, ``D`` model width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor, nn

from refine_kernels.host import known_on_host, on_host
from refine_kernels.records import map_numbers, map_tensors, numbers
from refine_pl.backbones.generating import Generating

if TYPE_CHECKING:
    from refine_pl.backbones.head import VocabHead

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Forks:
    """Continuations that are read from inside the sequences of the same forward."""

    positions: Tensor  # [B, S] int64, tokens of the prefix that each fork continues
    tokens: Tensor  # [B, S, N, L] int64
    valid: Tensor  # [B, S] bool; where False the result holds anything, and gets no gradient


class LayerState:
    """What one layer carries from token to token, for ``R`` rows. Never changed in place.

    A dataclass; its tensors are found in its fields, however deep inside. Where each has a row of
    its own for every row of the state, there is nothing more to say. A field that shares rows
    between copies has ``select`` and ``fork`` of its own.
    """

    def for_graph(self, length: int) -> LayerState | None:
        """The same rows in a form of which sizes alone decide what ``length`` more tokens run.

        None where numbers on the host decide. Further tokens, and gradients, need the other form.
        """
        return self

    def select(self, rows: Tensor) -> Self:
        """The rows ``rows [M]`` int64."""
        return self._each("select", rows, lambda x: x[rows])

    def fork(self, n: int) -> Self:
        """Every row ``n`` times, one after the other."""
        return self._each("fork", n, lambda x: x.repeat_interleave(n, 0))

    def _each(self, own: str, argument: Any, rows: Callable[[Tensor], Tensor]) -> Self:
        """Each field by its ``own`` method if it has one, or else the ``rows`` of its tensors."""

        def made(value: Any) -> Any:
            if hasattr(value, own) and not isinstance(value, Tensor):
                return getattr(value, own)(argument)
            return map_tensors(rows, value)

        return type(self)(*(made(getattr(self, f.name)) for f in fields(self)))  # type: ignore[arg-type]

    def tensors(self) -> tuple[Tensor, ...]:
        """Every floating-point tensor that is held."""
        return numbers(self)

    def detach(self) -> Self:
        """The same values without their history."""
        return map_numbers(Tensor.detach, self)


class State:
    """The state of a whole model after ``num_tokens`` tokens of each of ``R`` rows.

    Differentiable if the forward that made it was. The update never detaches it.

    Not a dataclass, because FSDP2 looks into those: it would take the gradient of a state that a
    pass continues for the end of the model's backward pass.

    Args:
        layers: of each layer.
        num_tokens: ``[R]`` int64.
    """

    __slots__ = ("layers", "num_tokens")

    def __init__(self, layers: tuple[LayerState, ...], num_tokens: Tensor) -> None:
        self.layers = layers
        self.num_tokens = num_tokens

    def select(self, rows: Tensor) -> State:
        """The rows ``rows [M]`` int64."""
        layers = tuple(layer.select(rows) for layer in self.layers)
        return State(layers, self.num_tokens[rows])

    def fork(self, n: int) -> State:
        """Every row ``n`` times (``R * n`` rows), sharing the prefix's state between the copies."""
        layers = tuple(layer.fork(n) for layer in self.layers)
        return State(layers, self.num_tokens.repeat_interleave(n))

    def repeat(self, n: int) -> State:
        """Every row ``n`` times (``R * n`` rows) as copies that share nothing."""
        rows = torch.arange(len(self.num_tokens), device=self.num_tokens.device)
        return self.select(rows.repeat_interleave(n))

    def detach(self) -> State:
        """The same values without their history."""
        return State(tuple(layer.detach() for layer in self.layers), self.num_tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for la in self.layers for t in la.tensors())


class LayerTrail(ABC):
    """What one layer keeps of a forward, so that it can give its state at any position."""

    @abstractmethod
    def at(self, positions: Tensor) -> LayerState:
        """The state after ``positions [B, S]`` tokens, rows flattened to ``B * S``."""


@dataclass(frozen=True, slots=True)
class StateTrail:
    """What a forward keeps, so that it can give the state after any number of its tokens."""

    layers: tuple[LayerTrail, ...]
    num_tokens: Tensor  # [B] int64, tokens before this forward's first one

    def at(self, positions: Tensor) -> State:
        """The exact state after ``positions [B, S]`` tokens, rows flattened to ``B * S``."""
        layers = tuple(layer.at(positions) for layer in self.layers)
        return State(layers, (self.num_tokens[:, None] + positions).flatten())


@dataclass(frozen=True, slots=True)
class LMOutput:
    """What a forward returns."""

    hidden: Tensor  # [B, T, D] after the final norm, the input of the head
    state: State  # after each row's own num_tokens
    fork_hidden: Tensor | None = None  # [B, S, N, L, D] if forks were given
    trail: StateTrail | None = None  # if keep_trail


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """How the flat rows ``[M, D]`` that run through the layers are made up.

    The first ``batch * length`` rows are the sequences; the fork tokens follow. Everything that
    works on single tokens (norms, projections, MLP) runs over all of them at once.
    """

    batch: int  # B
    length: int  # T
    num_tokens: Tensor  # [B] int64
    mask: Tensor | None = None  # [B, T] bool, real tokens; None when no row is padded
    forks: Forks | None = None
    lean: bool = False  # a trail, if one is kept, may be small and slow, and need the weights
    ends: Tensor = field(init=False)  # [B, 1], num_tokens as positions: one tensor for all layers

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", self.num_tokens[:, None])

    def split(self, rows: R) -> tuple[R, R | None]:
        """``rows [M, ...]`` as the sequences ``[B, T, ...]`` and the forks ``[B*S*N, L, ...]``.

        ``rows`` is a tensor, or a record of some.
        """
        num_main, size = self.batch * self.length, (self.batch, self.length)
        main = map_tensors(lambda x: x[:num_main].unflatten(0, size), rows)
        if self.forks is None:
            return main, None
        length = self.forks.tokens.shape[-1]
        return main, map_tensors(lambda x: x[num_main:].unflatten(0, (-1, length)), rows)

    def join(self, main: Tensor, fork: Tensor | None) -> Tensor:
        """The inverse of :meth:`split`."""
        if fork is None:
            return main.flatten(0, 1)
        return torch.cat([main.flatten(0, 1), fork.flatten(0, 1)])

    def numbers(self, before: Tensor) -> Tensor:
        """The number of each token in its row ``[M]``, where ``before [B]`` tokens precede."""
        main = (before[:, None] + torch.arange(self.length, device=before.device)).flatten()
        if self.forks is None:
            return main
        positions = before[:, None] + self.forks.positions
        offset = torch.arange(self.forks.tokens.shape[-1], device=before.device)
        fork = (positions[:, :, None, None] + offset).expand(self.forks.tokens.shape)
        return torch.cat([main, fork.flatten()])


def layout_of(
    tokens: Tensor, num_tokens: Tensor | None, forks: Forks | None, lean: bool = False
) -> tuple[TokenLayout, Tensor]:
    """The layout of a forward, and its tokens in one flat row ``[M]``.

    Args:
        tokens: as in :meth:`FastWeightLM.forward`.
        num_tokens: likewise.
        forks: likewise.
        lean: trails may be small; see :class:`TokenLayout`.
    """
    batch, length = tokens.shape
    mask = None
    if num_tokens is None:
        num_tokens = torch.full((batch,), length, dtype=torch.int64, device=tokens.device)
        known_on_host(num_tokens, torch.full((batch,), length, dtype=torch.int64))
    elif bool((on_host(num_tokens) < length).any()):
        mask = torch.arange(length, device=tokens.device) < num_tokens[:, None]
        tokens = tokens.masked_fill(~mask, 0)  # padding may hold any number
    flat = tokens.flatten()
    if forks is not None:
        fork_tokens = forks.tokens.masked_fill(~forks.valid[:, :, None, None], 0)
        flat = torch.cat([flat, fork_tokens.flatten()])
    layout = TokenLayout(batch, length, num_tokens, mask, forks, lean)
    known_on_host(layout.ends, on_host(num_tokens)[:, None])
    return layout, flat


class OpenPass(ABC):
    """A pass over sequences, whose forks :meth:`close` adds.

    Attributes:
        hidden: ``[B, T, D]`` after the final norm.
        trail: of the pass; None once it is closed.
    """

    hidden: Tensor
    trail: StateTrail | None

    @abstractmethod
    def close(self, forks: Forks | None, *made: Tensor) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """Add the forks; once. The trail is let go.

        Args:
            forks: continuations, if there are any.
            made: :attr:`hidden`, and whatever else was made of it.

        Returns:
            The forks' hidden states ``[B, S, N, L, D]``, and what was made: differentiable through
            the whole model only now.
        """


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a published configuration, the fields of the language model; there may be other parts."""
    part = config.get("text_config", config)
    assert isinstance(part, Mapping)
    return part


class FastWeightLM(nn.Module, Generating, ABC):
    """A language model whose context is a state of fixed size.

    Everything goes through :meth:`forward` and through :attr:`head`'s own forward, because the
    hooks of sharded training fire only there.

    Attributes:
        loaded_from: the folder or the name on the hub, and the revision there, that the weights
            were loaded from; None if they were made.
    """

    vocab_size: int
    hidden_size: int
    loaded_from: tuple[str, str | None] | None = None

    @property
    @abstractmethod
    def head(self) -> VocabHead:
        """The output layer, a module of its own."""

    @abstractmethod
    def forward(
        self,
        tokens: Tensor,
        num_tokens: Tensor | None = None,
        *,
        state: State | None = None,
        forks: Forks | None = None,
        keep_trail: bool = False,
    ) -> LMOutput:
        """Read tokens.

        Args:
            tokens: ``[B, T]`` int64, padded on the right.
            num_tokens: ``[B]`` real tokens of each row, all of them if left out. What comes
                after them changes nothing.
            state: what the rows continue, of ``B`` rows; an empty context if left out.
            forks: continuations to read from inside the rows.
            keep_trail: keep what :meth:`StateTrail.at` needs.
        """

    def open_pass(self, tokens: Tensor, num_tokens: Tensor) -> OpenPass:
        """Read ``tokens [B, T]`` with gradients; forks that are chosen from the result follow."""
        return PlainPass(self, tokens, num_tokens)

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The configuration fields under their published names, ``model_type`` among them."""


class PlainPass(OpenPass):
    """One whose graph is there from the first."""

    def __init__(self, policy: FastWeightLM, tokens: Tensor, num_tokens: Tensor) -> None:
        self.policy = policy
        output = policy(tokens, num_tokens, keep_trail=True)
        self.hidden, self.trail = output.hidden, output.trail

    def close(self, forks: Forks | None, *made: Tensor) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """See :class:`OpenPass`."""
        assert self.trail is not None, "the pass was closed already"
        trail, self.trail = self.trail, None
        if forks is None:
            return None, made
        state = trail.at(forks.positions).fork(forks.tokens.shape[2])
        del trail
        hidden = self.policy(forks.tokens.flatten(0, 2), state=state).hidden
        return hidden.view(*forks.tokens.shape, -1), made
