"""The yardstick of LaCT's chunk loop: its matrix products, no more and no fewer."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from refine_kernels.lact_update import cost, lact_update
from refine_kernels.records import map_numbers

CPU = torch.device("cpu")


def in_place(_, a, b, **options):
    """The operations of a product of shapes ``a`` and ``b`` that is added in place."""
    return 2 * a[0] * a[1] * a[2] * b[2]


def counter():
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: in_place})


@pytest.mark.parametrize("length", [64, 80, 16, 7])
def test_the_products_are_those_of_the_loop(length):
    sizes = cost.Sizes(length=length, heads=3, width=8, chunk_size=16, inner=12, batch=2)
    q, tokens, initial = cost.problem(sizes, CPU, torch.float32)
    products = cost._Products(sizes, CPU, torch.float32)
    leaves = map_numbers(lambda x: x.requires_grad_(), (q, tokens, initial))
    with counter() as loop_forward:
        output = lact_update(*leaves, sizes.rule, backend="torch").output
    with counter() as loop_backward:
        output.sum().backward()
    with counter() as forward:
        products.forward()
    with counter() as backward:
        products.backward()
    assert loop_forward.get_total_flops() == forward.get_total_flops() > 0
    assert loop_backward.get_total_flops() == backward.get_total_flops() > 0


def test_costs():
    sizes = cost.Sizes(length=40, heads=2, width=8, chunk_size=16, inner=8)
    found = cost.costs(sizes, "torch", repeats=3, device=CPU)
    assert [each.name for each in found] == ["forward", "forward and backward"]
    for each in found:
        assert len(each.ratios) == 3
        assert min(each.ratios) <= each.ratio <= max(each.ratios)
        assert min(each.loop + each.products) > 0
    assert cost.element_wise(sizes, "auto", CPU, torch.float32) == "uncompiled"
