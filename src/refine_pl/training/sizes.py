"""How batches are cut into updates, and who shares them: what the engine is told of its work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeVar

from torch import Tensor, nn

from refine_pl.records import Batch, Packs
from refine_pl.rollouts.base import RolloutGenerator

T = TypeVar("T")


class Rows(Protocol):
    """Something that can be cut into smaller batches."""

    def __len__(self) -> int: ...

    def narrow(self, start: int, stop: int) -> Self:
        """Rows ``start`` to ``stop - 1``."""


AnyRows = TypeVar("AnyRows", bound=Rows)


class Stepper(Protocol):
    """What is needed of an optimizer; Lightning's wrapper of one has it too."""

    param_groups: list[dict[str, Any]]

    def step(self) -> Any:
        """Change the parameters."""

    def zero_grad(self) -> None:
        """Drop the gradients."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How a batch is cut."""

    minibatch: int | None  # rows of an optimizer step, over all processes; None: the whole batch
    microbatch: int  # rows of a forward and backward pass, on each process
    rollouts_per: Literal["batch", "minibatch"] = "batch"  # what is drawn before the first step
    update: Literal["auto", "joined", "two_pass"] = "auto"  # auto: joined where it is possible
    # Rows that rollouts are drawn for at once where that is a pass of its own, on each process.
    draw_batch: int | Literal["auto"] = "auto"

    def updates(self, batch_size: int) -> int:
        """Optimizer steps that ReFINE takes for ``batch_size`` rows, over all processes."""
        return 1 if self.minibatch is None else batch_size // self.minibatch

    def drawn_at_once(self, policy: nn.Module, generator: RolloutGenerator) -> int:
        """Rows that rollouts are drawn for at once, whole micro-batches of them.

        An update holds the activations of a micro-batch, and drawing the trails of these rows. A
        trail is less: a fourth or so of all activations, a half where those are recomputed. A
        generator that reads prefixes again holds more than an update.
        """
        if self.draw_batch != "auto":
            return self.draw_batch
        if not generator.joins:
            return self.microbatch
        recomputed = getattr(policy, "activation_checkpointing", False)
        return self.microbatch * (2 if recomputed else 4)


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes that share a batch; one alone by default."""

    count: int = 1
    total: Callable[[Tensor], Tensor] = lambda values: values  # adds a tensor up over them
    # Makes a backward pass exchange gradients, if it is told that it is the last one of an update.
    synchronised: Callable[[bool], AbstractContextManager[Any]] = lambda last: nullcontext()


def cut(batch: AnyRows, size: int) -> Iterator[AnyRows]:
    """Pieces of ``size`` rows; the last one may be smaller."""
    for start in range(0, len(batch), size):
        yield batch.narrow(start, min(start + size, len(batch)))


def passes(batch: Batch | Packs, size: int) -> Iterator[Batch]:
    """Pieces that are read at once: ``size`` rows, or a pack."""
    return iter(batch.packs) if isinstance(batch, Packs) else cut(batch, size)
