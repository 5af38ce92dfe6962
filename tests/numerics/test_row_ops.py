"""Norms and SwiGLU by torch against their definitions, and what they refuse."""

import pytest
import torch
import torch.nn.functional as F

from refine_kernels.gated_norm import gated_norm, rms_norm
from refine_kernels.gated_norm.reference import gated_norm_reference
from refine_kernels.swiglu import swiglu
from refine_kernels.swiglu.reference import swiglu_reference


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


def same(got, expected, leaves):
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    wanted, actual = (torch.autograd.grad(y.sin().sum(), leaves) for y in (expected, got))
    for a, b in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
@pytest.mark.parametrize("gates", [0, 1, 7])
def test_norms_equal_their_definition(gates, activation, offset):
    x, weight = draw(3, 5, 7), draw(7)
    gate = draw(3, 5, gates) if gates else None
    expected = gated_norm_reference(x, gate, weight, 1e-5, activation == "sigmoid", offset)
    if gate is None:
        same(rms_norm(x, weight, 1e-5, offset=offset), expected, [x, weight])
    else:
        got = gated_norm(x, gate, weight, 1e-5, activation=activation, offset=offset)
        same(got, expected, [x, weight, gate])


def test_swiglu_equals_its_definition():
    gate, up = draw(3, 5), draw(3, 5)
    same(swiglu(gate, up), swiglu_reference(gate, up), [gate, up])


def test_a_weight_with_an_offset_keeps_its_digits_in_16_bits():
    x, weight = torch.ones(1, 4, dtype=torch.bfloat16), torch.full((4,), 1e-4)
    got = rms_norm(256 * x, weight, 0.0, offset=1.0)
    assert got.dtype == torch.bfloat16
    wide = F.rms_norm(x.float(), (4,), weight + 1, 0.0)
    assert torch.equal(got, wide.bfloat16())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x: rms_norm(x, x[0, :3], 1e-5), "weight has shape .3,., expected .4,."),
        (lambda x: gated_norm(x, x[:1], x[0], 1e-5), "gate has shape"),
        (lambda x: gated_norm(x, x, x[0], 1e-5, activation="relu"), "no activation 'relu'"),
        (lambda x: swiglu(x, x[:1]), "up has shape"),
        (lambda x: swiglu(x, x, backend="triton"), "swiglu: backend 'triton' cannot run"),
        (lambda x: rms_norm(x, x[0], 1e-5, backend="fla"), "rms_norm has no backend 'fla'"),
    ],
)
def test_what_does_not_fit_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make(torch.zeros(2, 4))
