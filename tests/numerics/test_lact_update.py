"""LaCT's fast weights against their definition, and the hand-written backward passes."""

import pytest
import torch

from refine_kernels.lact_update import FastTokens, FastWeights, UpdateRule, blocks, lact_update
from refine_kernels.lact_update.directions import Written, direction
from refine_kernels.lact_update.reading import read
from refine_kernels.lact_update.reference import lact_reference
from refine_kernels.lact_update.step import newton_schulz
from refine_kernels.records import numbers


def draw(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    x = scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x.requires_grad_()


def problem(length, batch=2, heads=2, width=4, inner=6, momentum=True):
    def tokens(seed):
        return draw(batch, length, heads, width, seed=seed)

    initial = FastWeights(
        draw(heads, inner, width, seed=4), draw(heads, width, inner), draw(heads, inner, width)
    )
    rates = draw(batch, length, heads, 3, seed=5, scale=0.1)
    kept = draw(batch, length, heads, seed=6) if momentum else None
    return tokens(1), FastTokens(tokens(2), tokens(3), rates, kept), initial


RULES = [
    UpdateRule(5),
    UpdateRule(5, prenorm=True),
    UpdateRule(4, muon=torch.float64),
    UpdateRule(4, prenorm=True, muon=torch.float64),
    UpdateRule(100),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("length", [1, 5, 10, 13])
def test_equals_definition(rule, momentum, length):
    q, tokens, initial = problem(length, momentum=momentum)
    got = lact_update(q, tokens, initial, rule)
    expected = torch.stack(
        [
            torch.stack(
                [
                    lact_reference(
                        q[b, :, h],
                        tokens.map(lambda x, b=b, h=h: x[b, :, h]),
                        initial.map(lambda w, h=h: w[h]),
                        rule,
                    )[0]
                    for h in range(2)
                ],
                1,
            )
            for b in range(2)
        ]
    )
    torch.testing.assert_close(got.output, expected, rtol=1e-10, atol=1e-10)
    assert len(got.trail.entering.chunks) == -(-length // rule.chunk_size)
    inputs = [q, *numbers(tokens), *initial]
    weight = draw(*expected.shape, seed=9).detach()
    wanted = torch.autograd.grad((expected * weight).sum(), inputs, allow_unused=True)
    actual = torch.autograd.grad((got.output * weight).sum(), inputs, allow_unused=True)
    for a, b in zip(actual, wanted, strict=True):
        a, b = (torch.zeros(()) if x is None else x for x in (a, b))
        torch.testing.assert_close(a, b.expand_as(a), rtol=1e-8, atol=1e-9, check_dtype=False)


@pytest.mark.parametrize("per_channel", [False, True])
def test_gradients_of_the_two_halves(per_channel):
    weights = [draw(1, 2, 3, 3, seed=i) for i in range(3)]
    k, v = draw(1, 5, 2, 3, seed=4), draw(1, 5, 2, 3, seed=5)
    rates = draw(1, 5, 2, 9 if per_channel else 3)
    others = [draw(1, 2, 3, 3, seed=i) for i in range(6, 9)]
    assert torch.autograd.gradcheck(
        lambda *x: read([FastWeights(*x[:3]), FastWeights(*x[3:6])], x[6], 3),
        [*weights, *others, k],
    )
    assert torch.autograd.gradcheck(
        lambda *x: tuple(direction(FastWeights(*x[:3]), Written.of(*x[3:]))[0]),
        [*weights, k, v, rates],
    )


def test_the_direction_is_a_gradient():
    weights = [draw(1, 1, 6, 4), draw(1, 1, 4, 6), draw(1, 1, 6, 4, seed=1)]
    k, v = draw(1, 7, 1, 4, seed=2), draw(1, 7, 1, 4, seed=3)
    rates = torch.ones(1, 7, 1, 3, dtype=torch.float64)
    found, _ = direction(FastWeights(*weights), Written.of(k, v, rates))
    score = (read([FastWeights(*weights)], k, 7) * v).sum()
    for a, b in zip(found, torch.autograd.grad(score, weights), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("elements", "tokens", "number"), [(1, 1, 18), (240, 40, 9), (480, 40, 6), (1440, 40, 2)]
)
def test_blocks_change_nothing(elements, tokens, number, monkeypatch):
    """Blocks of some tokens, of one head, of some heads, of several rows; and smaller last ones."""
    q, brought, initial = problem(90, batch=3, heads=3)
    inputs = [q, *numbers(brought), *initial]

    def run():
        output = lact_update(q, brought, initial, UpdateRule(40)).output
        return [output, *torch.autograd.grad((output * output.detach().cos()).sum(), inputs)]

    whole = run()
    monkeypatch.setitem(blocks.BLOCK_ELEMENTS, "cpu", elements)
    monkeypatch.setattr(blocks, "BLOCK_TOKENS", tokens)
    assert len(list(blocks.blocks(brought.k[:, :40], inner=6))) == number
    for a, b in zip(run(), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gradients_of_a_part_and_twice():
    """Chunks pass their tokens' gradients on: also where only some have any, and once more."""
    q, tokens, initial = problem(23)
    inputs = [*numbers(tokens), *initial]
    result = lact_update(q, tokens, initial, UpdateRule(5))
    outputs = result.output.split(5, 1)
    states = [each.applied.w0 for each in result.trail.entering.chunks]

    def found(loss):
        gradients = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
        return [
            torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True)
        ]

    parts = [out.sin().sum() for out in outputs] + [state.cos().sum() for state in states]
    whole = found(sum(parts))
    separate = [found(part) for part in parts]
    assert any(bool((each[0][:, 5:] == 0).all()) for each in separate)  # a later chunk had none
    for i, expected in enumerate(whole):
        torch.testing.assert_close(sum(each[i] for each in separate), expected)
    for a, b in zip(found(sum(parts)), whole, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 12, 5), (2, 5, 12)])
def test_newton_schulz_makes_singular_values_alike(shape):
    matrix = draw(*shape).detach()
    values = torch.linalg.svdvals(newton_schulz(matrix, torch.float64))
    assert values.min() > 0.6
    assert values.max() < 1.3
    rounded = newton_schulz(matrix, torch.bfloat16)
    assert rounded.dtype == torch.float64
    assert 0.001 < (rounded - newton_schulz(matrix, torch.float64)).abs().max() < 0.2


def test_float32_for_smaller_types():
    q, tokens, initial = problem(11)
    low = [x.detach().bfloat16() for x in (q, *numbers(tokens))]
    weights = initial.map(lambda w: w.detach().bfloat16())
    result = lact_update(low[0], FastTokens(*low[1:]), weights, UpdateRule(4))
    assert result.output.dtype == torch.bfloat16
    assert result.trail.entering.chunks[-1].applied.w0.dtype == torch.float32


@pytest.mark.parametrize("name", ["k", "rates", "w1"])
def test_wrong_shapes(name):
    q, tokens, initial = problem(6)
    if name == "w1":
        initial = initial._replace(w1=initial.w0)
    else:
        tokens = tokens._replace(**{name: getattr(tokens, name)[..., :2]})
    with pytest.raises(ValueError, match=name):
        lact_update(q, tokens, initial, UpdateRule(4))
