"""LaCT with few and large products, as on CUDA: exact in float64, and with bfloat16 operands."""

import pytest
import torch

from refine_kernels.lact_update import (
    FastTokens,
    FastWeights,
    UpdateRule,
    choice,
    interface,
    lact_update,
    precision,
)
from refine_kernels.lact_update.cost import Sizes
from refine_kernels.lact_update.cost import problem as problem_of_size
from refine_kernels.lact_update.stacked import BY_TORCH
from refine_kernels.records import map_numbers, numbers

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RULES = [
    UpdateRule(5),
    UpdateRule(5, prenorm=True),
    UpdateRule(4, prenorm=True, muon=torch.float64),
    UpdateRule(100),
]


def problem(length, per_channel=False, momentum=True, width=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(length)

    def draw(*shape, scale=1.0):
        x = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        return x.to(dtype).requires_grad_()

    q, k, v = (draw(2, length, 3, width) for _ in "qkv")
    rates = draw(2, length, 3, 3 * width if per_channel else 3, scale=0.1)
    kept = draw(2, length, 3) if momentum else None
    inner = width if per_channel else width + 2
    initial = [draw(3, inner, width), draw(3, width, inner), draw(3, inner, width)]
    return q, FastTokens(k, v, rates, kept), FastWeights(*(w for w in initial))


def results(given, rule, **options):
    q, tokens, initial = given
    output = lact_update(q, tokens, initial, rule, **options).output
    inputs = [q, *numbers(tokens), *initial]
    loss = (output * torch.arange(output.numel()).view_as(output).sin()).sum()
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [output.detach(), *(torch.zeros(1) if g is None else g for g in gradients)]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("length", "momentum"), [(1, True), (5, False), (10, True), (13, True)])
def test_equals_the_blocks_in_float64(monkeypatch, rule, per_channel, length, momentum):
    given = problem(length, per_channel, momentum)
    expected = results(given, rule)
    monkeypatch.setattr(interface, "choose_terms", lambda *_: BY_TORCH)
    for got, right in zip(results(given, rule), expected, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prenorm", [False, True])
@pytest.mark.parametrize("rates", [3, 96])
def test_bfloat16_operands_err_as_rounded_inputs_do(rates, prenorm):
    """The yardstick: the exact loop, whose inputs are rounded once."""
    torch.manual_seed(0)
    sizes = Sizes(90, heads=3, width=32, chunk_size=20, inner=32, batch=2, rates=rates)
    q, tokens, initial = problem_of_size(sizes, CPU, torch.float32)
    leaves = map_numbers(lambda x: x.requires_grad_(), (q, tokens, initial))
    near = map_numbers(lambda x: x.detach().bfloat16().float().requires_grad_(), leaves)
    rule = UpdateRule(20, prenorm)
    exact, once = results(leaves, rule), results(near, rule)
    got = results(leaves, rule, precision="bf16")
    assert [x.dtype for x in got] == [x.dtype for x in exact]
    for number, (rounded, yardstick, right) in enumerate(zip(got, once, exact, strict=True)):
        error, explained = (float((x - right).norm() / right.norm()) for x in (rounded, yardstick))
        assert explained / 4 < error < 2 * explained, number


def test_states_are_never_rounded():
    q, tokens, initial = problem(23, width=16, dtype=torch.float32)
    entering = lact_update(
        q, tokens, initial, UpdateRule(5), precision="bf16"
    ).trail.entering.chunks
    assert len(entering) == 5
    assert all(torch.equal(a[0], b) for a, b in zip(entering[0].applied, initial, strict=True))
    for state in entering:
        for matrix in numbers(state):
            assert matrix.dtype == torch.float32
            if matrix.any():  # but the first direction
                assert (matrix != matrix.bfloat16().float()).float().mean() > 0.9


def test_when_operands_are_bfloat16(monkeypatch):
    wide, short = torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)

    def operand(asked, tokens, device, autocast, states=torch.float32):
        class Tokens:
            dtype = tokens.dtype

        Tokens.device = device
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: autocast)
        return precision.operand_dtype(asked, Tokens, states)

    assert operand("auto", short, CUDA, False) == torch.bfloat16
    assert operand("auto", wide, CUDA, True) == torch.bfloat16
    assert operand("auto", wide, CUDA, False) == torch.float32
    assert operand("auto", wide, CUDA, True, torch.float64) == torch.float64
    assert operand("auto", short, CPU, True) == torch.float32
    assert operand("float32", short, CUDA, True) == torch.float32
    assert operand("bf16", wide, CPU, False) == torch.bfloat16
    with pytest.raises(ValueError, match="no precision 'fp8'; use auto, float32 or bf16"):
        operand("fp8", wide, CPU, False)


def test_which_implementation(monkeypatch):
    def chosen(backend="auto", device=CUDA, states=torch.float32, operands=torch.bfloat16, h=64):
        return choice.choose_terms(backend, device, states, operands, 1, h)

    monkeypatch.setattr(choice, "takes_triton", lambda op, backend, device, unfit: unfit is None)
    assert chosen() is chosen("triton") is choice.BY_TRITON
    assert chosen(operands=torch.float32) is choice.BY_TRITON
    assert chosen(states=torch.float64, operands=torch.float64) is BY_TORCH
    assert chosen(h=2**20) is BY_TORCH
    compiled = chosen("compiled")
    assert type(compiled) is type(BY_TORCH)
    assert compiled not in (BY_TORCH, choice.BY_TRITON)
    monkeypatch.undo()
    assert chosen(device=CPU) is BY_TORCH
    with pytest.raises(ValueError, match="lact_update: backend 'triton' cannot run"):
        chosen("triton", device=CPU)
