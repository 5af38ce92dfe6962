"""Blocked token statistics against whole logits, and what they hold in memory."""

import pytest
import torch

from refine_kernels.token_stats import blocked, token_stats
from refine_kernels.token_stats.reference import token_stats_reference


@pytest.mark.parametrize("budget", [1, 30, 10**6])
@pytest.mark.parametrize(("rows", "vocab_size"), [(1, 2), (7, 11), (23, 5)])
def test_equals_whole_logits(monkeypatch, rows, vocab_size, budget):
    monkeypatch.setitem(blocked.BLOCK_ELEMENTS, "cpu", budget)
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 6, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(vocab_size, 6, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(-1, vocab_size, (rows,), generator=generator)
    logprob, entropy, correct = token_stats_reference(hidden, weight, targets)
    got = token_stats(hidden, weight, targets, entropy=True, correct=True)
    torch.testing.assert_close(got.logprob, logprob)
    torch.testing.assert_close(got.entropy, entropy)
    assert torch.equal(got.correct, correct)
    factors = torch.randn(2, rows, generator=generator, dtype=torch.float64)
    for use in ([1, 1], [1, 0], [0, 1]):
        wanted = torch.autograd.grad(
            (use[0] * factors[0] * logprob + use[1] * factors[1] * entropy).sum(),
            [hidden, weight],
            retain_graph=True,
        )
        parts = [
            f * p for u, f, p in zip(use, factors, (got.logprob, got.entropy), strict=True) if u
        ]
        actual = torch.autograd.grad(sum(parts).sum(), [hidden, weight], retain_graph=True)
        for a, b in zip(actual, wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_large_logits_stay_finite():
    hidden = torch.tensor([[300.0], [-300.0]])
    stats = token_stats(hidden, torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 0]), entropy=True)
    torch.testing.assert_close(stats.logprob, torch.tensor([0.0, -600.0]))
    torch.testing.assert_close(stats.entropy, torch.zeros(2))


def test_autocast_uses_its_type_for_the_products_only():
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 16), torch.randn(7, 16)
    targets = torch.arange(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = token_stats(hidden, weight, targets, entropy=True)
    rounded = token_stats_reference(hidden.bfloat16().float(), weight.bfloat16().float(), targets)
    assert got.logprob.dtype == torch.float32
    torch.testing.assert_close(got.logprob, rounded[0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(4, 2)), "must be"),
        ((torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(3, dtype=torch.long)), "targets"),
    ],
)
def test_wrong_shapes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        token_stats(*arguments)
