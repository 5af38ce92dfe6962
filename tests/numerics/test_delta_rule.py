"""The chunked delta rule, its trail and its short continuations against the plain recurrence."""

import pytest
import torch

from refine_kernels.delta_rule import SharedState, delta_rule, delta_rule_shared
from refine_kernels.delta_rule.reference import delta_rule_reference


def make_inputs(batch, length, heads, key_width, value_width, decay, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    q, k = draw(batch, length, heads, key_width), draw(batch, length, heads, key_width)
    v = draw(batch, length, heads, value_width)
    beta = draw(batch, length, heads).sigmoid()
    log_decay = -torch.nn.functional.softplus(draw(batch, length, heads)) if decay else None
    state = draw(batch, heads, key_width, value_width)
    tensors = [q, k, v, beta, log_decay, state]
    return [t if t is None else t.requires_grad_() for t in tensors]


def gradients(loss, tensors):
    wanted = [t for t in tensors if t is not None]
    return torch.autograd.grad(loss, wanted, allow_unused=True)


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("length", "chunk", "piece"),
    [(1, 16, 64), (15, 16, 64), (16, 16, 64), (75, 16, 32), (129, 64, 64)],
)
def test_chunked_equals_recurrence(monkeypatch, length, chunk, piece, normalize, decay):
    monkeypatch.setattr("refine_kernels.delta_rule.chunked.PIECE_TOKENS", piece)
    inputs = make_inputs(2, length, 3, 5, 7, decay, seed=length)
    if not normalize:  # without normalisation long random keys explode
        inputs[1] = (inputs[1].detach() * 0.3).requires_grad_()
    options = {"initial_state": inputs[5], "normalize_qk": normalize}
    expected, states = delta_rule_reference(*inputs[:5], **options)
    positions = torch.tensor([[0, length // 2, length], [min(1, length), length - 1, length // 3]])
    expected_at = torch.stack([states[b, p] for b in range(2) for p in positions[b].tolist()])
    got = delta_rule(*inputs[:5], **options, keep_trail=True, chunk_size=chunk, backend="torch")
    got_at = got.trail.at(positions)

    torch.testing.assert_close(got.output, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got.state, states[:, -1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got_at, expected_at, rtol=1e-10, atol=1e-10)

    generator = torch.Generator().manual_seed(1)
    weights = [
        torch.randn(x.shape, generator=generator, dtype=x.dtype)
        for x in (expected, states[:, -1], expected_at)
    ]

    def loss(*parts):
        return sum((p.sin() * w).sum() for p, w in zip(parts, weights, strict=True))

    wanted = gradients(loss(expected, states[:, -1], expected_at), inputs)
    actual = gradients(loss(got.output, got.state, got_at), inputs)
    for a, b in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("steps", [[4], [1, 1, 1, 1], [2, 3], [17], [1] * 20])
def test_shared_states_equal_recurrence(decay, steps):
    groups, copies = 3, 2
    length = sum(steps)
    q, k, v, beta, log_decay, state = make_inputs(groups * copies, length, 2, 5, 7, decay, seed=7)
    matrix = state[:groups]
    repeated = matrix.repeat_interleave(copies, 0)
    inputs = [q, k, v, beta, log_decay, state]
    expected, states = delta_rule_reference(
        q, k, v, beta, log_decay, initial_state=repeated, normalize_qk=True
    )
    shared, outputs, start = SharedState(matrix).fork(copies), [], 0
    for step in steps:
        here = slice(start, start + step)
        out, shared = delta_rule_shared(
            q[:, here], k[:, here], v[:, here], beta[:, here],
            None if log_decay is None else log_decay[:, here], shared, normalize_qk=True,
        )  # fmt: skip
        outputs.append(out)
        start += step
    output = torch.cat(outputs, 1)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(shared.fold().matrix, states[:, -1], rtol=1e-10, atol=1e-10)
    wanted = gradients(expected.sin().sum() + states[:, -1].cos().sum(), inputs)
    actual = gradients(output.sin().sum() + shared.fold().matrix.cos().sum(), inputs)
    for a, b in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_gradcheck():
    inputs = make_inputs(1, 9, 1, 3, 2, True, seed=0)

    def run(q, k, v, beta, log_decay, state):
        out = delta_rule(
            q, k, v, beta, log_decay, initial_state=state, normalize_qk=True, keep_trail=True,
            chunk_size=4, backend="torch",
        )  # fmt: skip
        return out.output, out.state, out.trail.at(torch.tensor([[2, 6]]))

    assert torch.autograd.gradcheck(run, inputs)


def test_zero_beta_leaves_the_state_alone():
    q, k, v, beta, log_decay, state = (
        t.detach() for t in make_inputs(2, 40, 2, 4, 4, True, seed=3)
    )
    beta[1, 23:] = 0
    log_decay[1, 23:] = 0
    k[1, 23:], v[1, 23:] = 1e3, -1e3
    whole = delta_rule(
        q, k, v, beta, log_decay, initial_state=state, normalize_qk=True, chunk_size=16
    )
    cut = delta_rule(
        q[1:, :23], k[1:, :23], v[1:, :23], beta[1:, :23], log_decay[1:, :23],
        initial_state=state[1:], normalize_qk=True, chunk_size=16,
    )  # fmt: skip
    torch.testing.assert_close(whole.state[1:], cut.state, rtol=1e-12, atol=1e-12)


def test_float32_keeps_up_over_many_chunks():
    inputs = [
        t if t is None else t.detach() for t in make_inputs(1, 2050, 2, 16, 16, False, seed=5)
    ]
    exact = delta_rule(*inputs[:5], normalize_qk=True)
    single = delta_rule(*(t if t is None else t.float() for t in inputs[:5]), normalize_qk=True)
    error = (single.output - exact.output).norm() / exact.output.norm()
    assert error < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (2, 5, 1, 4)}, "k has shape"),
        ({"beta": (2, 4, 1)}, "beta has shape"),
        ({"initial_state": (1, 1, 3, 3)}, "initial_state has shape"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    shapes = {"q": (2, 5, 1, 3), "k": (2, 5, 1, 3), "v": (2, 5, 1, 3), "beta": (2, 5, 1)} | change
    with pytest.raises(ValueError, match=message):
        delta_rule(**{name: torch.zeros(shape) for name, shape in shapes.items()})


def test_fla_on_the_cpu_is_refused():
    x = torch.zeros(1, 2, 1, 3)
    with pytest.raises(ValueError, match="backend 'fla' cannot run"):
        delta_rule(x, x, x, x[..., 0], backend="fla")
