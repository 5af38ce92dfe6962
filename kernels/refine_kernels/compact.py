"""Gradients of a few rows of a large tensor, without a tensor of all rows.

Autograd's own gradient of picked rows is as large as what they were picked from, and waits until
the operation that made it runs backward: of a model with states at positions that is one such
tensor for every layer at once. Here the rows' gradients wait as rows in a *mailbox*, and that
operation adds them where they belong.

An operation returns a *handle* of no elements beside its results. Rows that were taken depend on
the handle, so that autograd runs their backward before the operation's. Their gradients are good
for one backward pass only: what an interrupted one left behind is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Letter(NamedTuple):
    """Gradients of rows that were taken together."""

    places: tuple[Tensor, ...]  # integers: where the rows belong
    gradients: tuple[Tensor | None, ...]  # one for each kind of row


class Mailbox:
    """Where gradients of rows wait for the backward pass of one operation."""

    __slots__ = ("_letters", "_task")

    def __init__(self) -> None:
        self._letters: list[Any] = []
        self._task = -1

    def put(self, letter: Any) -> None:
        """Leave a letter for the operation's turn in this backward pass.

        Args:
            letter: a :class:`Letter`, or whatever else the operation reads.
        """
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task, self._letters = task, []
        self._letters.append(letter)

    def take(self, handle_gradient: Tensor | None) -> list[Any]:
        """The letters of this backward pass, in the operation's own backward.

        Args:
            handle_gradient: of the operation's handle; None if no rows were used.

        Raises:
            RuntimeError: letters are missing, or came from rows that do not depend on the handle.
        """
        here = self._task == torch._C._current_graph_task_id()
        letters = self._letters if here else []
        self._task, self._letters = -1, []
        if bool(letters) != (handle_gradient is not None):
            raise RuntimeError(
                "the gradients of rows at positions did not reach the operation that they were "
                "taken from: a trail must be used in the process and the graph that made it"
            )
        return letters


def take(
    handle: Tensor | None, mailbox: Mailbox, places: tuple[Tensor, ...], *rows: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The ``rows``, whose gradients will be put into the ``mailbox`` together with ``places``.

    Args:
        handle: of the operation that owns the mailbox; None or without history: as they are.
        mailbox: read by that operation's backward.
        places: what it needs to know to add the gradients up.
        rows: picked from its results and inputs, without a history of their own.
    """
    if handle is None or not (handle.requires_grad and torch.is_grad_enabled()):
        return rows
    return _Take.apply(handle, mailbox, places, *rows)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, handle: Tensor, mailbox: Mailbox, places: tuple[Tensor, ...], *rows: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        ctx.mailbox = mailbox
        ctx.save_for_backward(*places)
        ctx.handle_like = handle.shape, handle.dtype, handle.device
        ctx.set_materialize_grads(False)
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        none = (None,) * (2 + len(gradients))
        if all(gradient is None for gradient in gradients):
            return None, *none
        ctx.mailbox.put(Letter(ctx.saved_tensors, gradients))
        shape, dtype, device = ctx.handle_like
        return torch.empty(shape, dtype=dtype, device=device), *none


@dataclass(frozen=True, slots=True)
class Tapped:
    """A tensor ``[a, b, ...]`` that rows are taken from."""

    values: Tensor  # without history if there is a mailbox
    handle: Tensor | None = None
    mailbox: Mailbox | None = None

    def rows(self, index: Tensor) -> Tensor:
        """Those at ``index [...]`` of the first two dimensions taken as one, differentiable."""
        flat = index.flatten()
        picked = self.values.flatten(0, 1).index_select(0, flat)
        if self.mailbox is not None:
            (picked,) = take(self.handle, self.mailbox, (flat,), picked)  # type: ignore[assignment]
        return picked.view(*index.shape, *self.values.shape[2:])


def tap(x: Tensor) -> tuple[Tensor, Tapped]:
    """``x [a, b, ...]`` for further use, and what gives rows of it.

    The gradients of rows join that of the further use.
    """
    if not (x.requires_grad and torch.is_grad_enabled()):
        return x, Tapped(x)
    mailbox = Mailbox()
    through, handle = _Tap.apply(x, mailbox)
    return through, Tapped(x.detach(), handle, mailbox)


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mailbox: Mailbox) -> tuple[Tensor, Tensor]:
        ctx.mailbox = mailbox
        ctx.like = x.shape, x.dtype, x.device
        ctx.set_materialize_grads(False)
        return x, x.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor | None, handle: Tensor | None
    ) -> tuple[Tensor | None, None]:
        letters = ctx.mailbox.take(handle)
        if not letters:
            return gradient, None
        shape, dtype, device = ctx.like
        own = gradient is None  # one that was given may be shared with another operation
        flat = gradient
        if flat is None:
            flat = torch.zeros(shape, dtype=dtype, device=device)
        flat = flat.reshape(-1, *shape[2:])
        for (index,), (rows,) in letters:
            assert rows is not None
            add = flat.index_add_ if own else flat.index_add
            flat, own = add(0, index, rows.to(dtype)), True
        return flat.view(shape), None
