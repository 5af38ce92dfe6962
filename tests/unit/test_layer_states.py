"""What a layer's state does with its fields where a backbone says nothing about them."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from refine_pl.backbones import Forks, LayerState
from refine_pl.backbones.base import TokenLayout


class Inner(NamedTuple):
    matrix: Tensor
    tail: Tensor | None


@dataclass(frozen=True)
class Mine(LayerState):
    inner: Inner
    num_tokens: Tensor  # int64, as rotary positions need it
    seen: Tensor  # bool
    window: int


def state():
    matrix = torch.arange(3.0).requires_grad_() * 2
    return Mine(Inner(matrix, None), torch.tensor([5, 6, 7]), torch.tensor([True, False, True]), 4)


def test_rows_are_those_of_every_tensor():
    chosen = state().select(torch.tensor([2, 0]))
    assert chosen.inner.matrix.tolist() == [4, 0]
    assert chosen.num_tokens.tolist() == [7, 5]
    assert chosen.seen.tolist() == [True, True]
    assert (chosen.inner.tail, chosen.window) == (None, 4)


def test_forks_are_those_of_every_tensor():
    forked = state().fork(2)
    assert forked.inner.matrix.tolist() == [0, 0, 2, 2, 4, 4]
    assert forked.num_tokens.tolist() == [5, 5, 6, 6, 7, 7]
    assert forked.seen.tolist() == [True, True, False, False, True, True]


def test_history_and_size_are_those_of_floating_point_tensors():
    assert state().inner.matrix.requires_grad
    detached = state().detach()
    assert not detached.inner.matrix.requires_grad
    assert detached.num_tokens.tolist() == [5, 6, 7]
    assert [tensor.dtype for tensor in detached.tensors()] == [torch.float32]


def test_a_layout_splits_every_tensor_of_a_record():
    forks = Forks(torch.tensor([[1]]), torch.zeros(1, 1, 2, 3, dtype=torch.int64), torch.ones(1, 1))
    layout = TokenLayout(1, 4, torch.tensor([4]), None, forks)
    values, kinds = torch.arange(10.0), torch.arange(10)
    main, fork = layout.split((values, kinds))
    for part, whole in zip(main, (values, kinds), strict=True):
        assert part.tolist() == [whole[:4].tolist()]
    for part, whole in zip(fork, (values, kinds), strict=True):
        assert part.tolist() == [whole[4:7].tolist(), whole[7:].tolist()]
