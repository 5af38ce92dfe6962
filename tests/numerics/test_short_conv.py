"""The blocked short convolution and its state against the definition."""

import pytest
import torch

from refine_kernels.short_conv import conv_tail_at, short_conv
from refine_kernels.short_conv.reference import short_conv_reference


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("length", "width"), [(1, 4), (2, 4), (7, 4), (8, 2), (23, 3), (5, 1)])
def test_equals_definition(monkeypatch, length, width, bias, silu):
    monkeypatch.setattr("refine_kernels.short_conv.blocked.BLOCK_TOKENS", 8)
    generator = torch.Generator().manual_seed(length)

    def draw(*shape):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.requires_grad_()

    x, weight, tail = draw(2, length, 5), draw(5, 1, width), draw(2, width - 1, 5)
    offset = draw(5) if bias else None
    inputs = [t for t in (x, weight, offset, tail) if t is not None and t.numel()]
    expected = short_conv_reference(x, weight, offset, tail, silu)
    got = short_conv(x, weight, offset, tail=tail, silu=silu)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad(expected.sin().sum(), inputs)
    actual = torch.autograd.grad(got.sin().sum(), inputs)
    for a, b in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("with_tail", [True, False])
def test_state_continues_the_row(with_tail):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 9, 3), torch.randn(3, 1, 4)
    tail = torch.randn(2, 3, 3) if with_tail else None
    whole = short_conv(x, weight, tail=tail)
    positions = torch.tensor([[0, 1, 2, 3, 8], [4, 5, 6, 7, 8]])
    tails = conv_tail_at(x, tail, positions, 4).unflatten(0, (2, 5))
    for row in range(2):
        for i, p in enumerate(positions[row].tolist()):
            rest = short_conv(x[row : row + 1, p:], weight, tail=tails[row, i : i + 1])
            torch.testing.assert_close(rest, whole[row : row + 1, p:])


def test_other_devices_path_equals_the_blocked_one():
    """Bfloat16 goes through conv1d on every device."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 9, 3), torch.randn(3, 1, 4)
    got = short_conv(x.bfloat16(), weight, silu=True)
    torch.testing.assert_close(got.float(), short_conv(x, weight), rtol=0.05, atol=0.05)
