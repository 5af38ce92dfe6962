"""Gradients of states at positions go back as rows, and none of them is lost. In float64."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from refine_kernels.compact import Mailbox, take, tap
from refine_kernels.delta_rule import delta_rule
from refine_kernels.delta_rule.reference import delta_rule_reference
from refine_pl.benchmark.memory import PeakMemory

LENGTH, CHUNK = 45, 16
POSITIONS = [torch.tensor(p) for p in ([[3, 16, 45], [0, 20, 33]], [[17], [44]], [[31, 30]] * 2)]


def make_inputs(decay, seed=0, length=LENGTH, heads=2, width=5):
    torch.manual_seed(seed)
    q, k, v = (torch.randn(2, length, heads, width, dtype=torch.float64) for _ in "qkv")
    beta = torch.rand(2, length, heads, dtype=torch.float64)
    log_decay = -torch.rand(2, length, heads, dtype=torch.float64) if decay else None
    tensors = (q, k, v, beta, log_decay)
    return [x if x is None else x.requires_grad_() for x in tensors]


def read(inputs, **options):
    return delta_rule(*inputs, normalize_qk=True, keep_trail=True, chunk_size=CHUNK, **options)


def gradients(loss, inputs, **options):
    wanted = [x for x in inputs if x is not None]
    return torch.autograd.grad(loss, wanted, allow_unused=True, **options)


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        if a is None or b is None:
            assert (a if b is None else b) is None or not (a if b is None else b).any()
        else:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def picked(states, positions):
    return torch.stack([states[b, p] for b, row in enumerate(positions.tolist()) for p in row])


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("uses", [(), (0,), (0, 1), (2, 2, 1, 0)])
@pytest.mark.parametrize("output", [False, True])
def test_trails_used_any_number_of_times(decay, again, uses, output):
    """Never, once, at the same positions twice; with and without the outputs' own gradient."""
    if not uses and not output:
        uses = (1,)
    inputs = make_inputs(decay, seed=len(uses))
    expected, states = delta_rule_reference(*inputs, normalize_qk=True)
    got = checkpoint(read, inputs, use_reentrant=False) if again else read(inputs)
    loss = sum((i + 1) * picked(states, POSITIONS[p]).sin().sum() for i, p in enumerate(uses))
    same = sum((i + 1) * got.trail.at(POSITIONS[p]).sin().sum() for i, p in enumerate(uses))
    if output:
        loss, same = loss + expected.cos().sum(), same + got.output.cos().sum()
    assert_same(gradients(same, inputs), gradients(loss, inputs))


def test_backward_twice_and_one_loss_after_the_other():
    inputs = make_inputs(True)
    expected, states = delta_rule_reference(*inputs, normalize_qk=True)
    got = read(inputs)
    at, expected_at = got.trail.at(POSITIONS[0]), picked(states, POSITIONS[0])
    losses = [got.output.sin().sum(), at.cos().sum(), (at * got.output.sum()).sum()]
    wanted = [expected.sin().sum(), expected_at.cos().sum(), (expected_at * expected.sum()).sum()]
    for loss, same in [*zip(losses, wanted, strict=True)] * 2:
        found = gradients(loss, inputs, retain_graph=True)
        assert_same(found, gradients(same, inputs, retain_graph=True))


def test_what_an_interrupted_backward_left_behind_is_dropped():
    inputs = make_inputs(False)
    expected, states = delta_rule_reference(*inputs, normalize_qk=True)
    fails = [True]

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            if fails[0]:
                raise KeyboardInterrupt
            return gradient

    got = read(inputs)
    # The rows were taken last, so that their backward comes first; then the outputs' fails.
    output = Fails.apply(got.output)
    loss = got.trail.at(POSITIONS[0]).sin().sum() + output.cos().sum()
    with pytest.raises(KeyboardInterrupt):
        gradients(loss, inputs, retain_graph=True)
    fails[0] = False
    same = picked(states, POSITIONS[0]).sin().sum() + expected.cos().sum()
    assert_same(gradients(loss, inputs), gradients(same, inputs))


def test_gradients_that_go_astray_are_an_error():
    """The broken cases: rows of one pass with the mailbox of another, or with its handle."""
    one, other = (make_inputs(False, seed) for seed in (1, 2))
    first, second = read(one).trail.source, read(other).trail.source
    rows = torch.zeros(2, 3, dtype=torch.float64)
    (lost,) = take(first.handle, second.mailbox, (torch.zeros(1, 1),), rows)
    with pytest.raises(RuntimeError, match="did not reach"):
        gradients(lost.sum(), one)
    (lost,) = take(first.handle, Mailbox(), (torch.zeros(1, 1),), rows)
    with pytest.raises(RuntimeError, match="did not reach"):
        gradients(lost.sum(), one)


def test_second_derivatives_are_an_error():
    inputs = make_inputs(False)
    found = gradients(read(inputs).trail.at(POSITIONS[0]).sin().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        found[1].sum().backward()


def test_without_gradients_nothing_is_taken():
    inputs = make_inputs(False)
    with torch.no_grad():
        got = read(inputs)
        assert not got.trail.at(POSITIONS[0]).requires_grad
    assert not got.trail.at(POSITIONS[0]).requires_grad
    with_history = read(inputs).trail
    with torch.no_grad():
        assert not with_history.at(POSITIONS[0]).requires_grad
    assert with_history.at(POSITIONS[0]).requires_grad


@pytest.mark.parametrize("uses", [(), (0,), (0, 1, 1)])
@pytest.mark.parametrize("output", [False, True])
def test_taps(uses, output):
    torch.manual_seed(0)
    x = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    indices = [torch.tensor([[0, 17], [5, 5]]), torch.tensor([3])]
    through, tapped = tap(x)
    loss = x.sum() * 0
    same = through.sum() * 0
    if output:
        loss, same = loss + x.sin().sum(), same + through.sin().sum()
    for i in uses:
        loss = loss + (i + 1) * x.flatten(0, 1)[indices[i]].cos().sum()
        same = same + (i + 1) * tapped.rows(indices[i]).cos().sum()
    for _ in range(2):
        expected = torch.autograd.grad(loss, x, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(same, x, retain_graph=True), expected)


def test_a_tap_leaves_a_shared_gradient_alone():
    x, y = (torch.zeros(1, 4, 2, requires_grad=True) for _ in "xy")
    through, tapped = tap(x)
    ((through + y).sum() + tapped.rows(torch.tensor([1])).sum()).backward()
    assert y.grad.eq(1).all()
    assert x.grad[0].sum(-1).tolist() == [2, 4, 2, 2]


@pytest.mark.parametrize("decay", [False, True])
def test_no_tensor_of_all_chunks(decay):
    """Rows that were picked from all chunks' states would get a gradient of that size."""
    inputs = make_inputs(decay, length=4096, heads=1, width=64)
    got = read(inputs)
    states = got.trail.states
    with PeakMemory() as compact:
        gradients(got.trail.at(POSITIONS[0]).sin().sum(), inputs, retain_graph=True)
    assert 0 < compact.largest_elements < states.numel() / 3
    with PeakMemory() as dense:
        leaf = states.detach().requires_grad_()
        leaf.flatten(0, 1)[:4].sin().sum().backward()
    assert dense.largest_elements >= states.numel()
