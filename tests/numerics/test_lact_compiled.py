"""LaCT's element-wise work compiled, and when it is."""

import pytest
import torch

from refine_kernels import backends
from refine_kernels.lact_update import (
    FastTokens,
    FastWeights,
    UpdateRule,
    choice,
    compiled,
    lact_update,
)
from refine_kernels.lact_update.terms import EAGER, Terms

CPU = torch.device("cpu")
MISSING = backends.compiler_missing()
LONG = compiled.COMPILE_ELEMENTS


@pytest.fixture
def afresh():
    """What was compiled, or could not be, is forgotten before and after."""
    compiled._compile.cache_clear()
    yield
    compiled._compile.cache_clear()


def gradients(backend, per_channel, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    width = 4
    q, k, v = (draw(2, 23, 3, width) for _ in range(3))
    rates = draw(2, 23, 3, 3 * width if per_channel else 3)
    momentum = draw(2, 23, 3)
    initial = [draw(3, width, width) for _ in range(3)]
    tokens = FastTokens(k, v, rates, momentum)
    rule = UpdateRule(5)
    output = lact_update(q, tokens, FastWeights(*initial), rule, backend=backend).output
    inputs = [q, k, v, rates, momentum, *initial]
    return [output, *torch.autograd.grad((output * output.detach().cos()).sum(), inputs)]


@pytest.mark.slow
@pytest.mark.skipif(
    backends.compiler_missing() is not None, reason=str(backends.compiler_missing())
)
def test_compiled_equals_uncompiled(afresh):
    """Forward and backward, both kinds of rates, and what is compiled serves any number of rows."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    for per_channel in (False, True):
        got, expected = (gradients(backend, per_channel) for backend in ("compiled", "torch"))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    # Four functions, two of them for both kinds of rates: no chunk compiled one again.
    assert counters["unique_graphs"] - before == 6


def test_auto_compiles_long_rows_only(afresh, monkeypatch):
    monkeypatch.setattr(compiled, "compiler_missing", lambda: None)
    assert compiled.choose("auto", CPU, torch.float32, LONG) is not EAGER
    assert compiled.choose("auto", CPU, torch.float32, LONG - 1) is EAGER
    assert compiled.choose("auto", CPU, torch.float64, LONG) is EAGER
    assert compiled.choose("auto", torch.device("cuda"), torch.float32, LONG) is EAGER
    assert compiled.choose("torch", CPU, torch.float32, LONG) is EAGER
    assert compiled.choose("compiled", CPU, torch.float64, 1) is not EAGER


def test_without_a_compiler(afresh, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiled.choose("auto", CPU, torch.float32, LONG) is EAGER
    with pytest.raises(ValueError, match=r"no C\+\+ compiler \(no-such-compiler\)"):
        compiled.choose("compiled", CPU, torch.float32, LONG)
    rows = {(row.op, row.implementation): row for row in backends.report()}
    assert "no-such-compiler" in rows["lact_update", "compiled"].reason


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"'fla'.*auto, torch, compiled or triton"):
        choice.choose_terms("fla", CPU, torch.float32, torch.float32, 1, 1)


@pytest.mark.filterwarnings("error")
def test_a_compiler_that_fails(afresh, monkeypatch):
    """``auto`` says so once and goes on; asked for by name, it is an error."""

    def broken(function):
        def run(*_):
            raise RuntimeError("no space left\non the device")

        return run

    monkeypatch.setattr(compiled, "compiler_missing", lambda: None)
    monkeypatch.setattr(torch, "compile", broken)
    terms: Terms = compiled.choose("auto", CPU, torch.float32, LONG)
    a, b = torch.randn(2, 7, 5)
    with pytest.warns(UserWarning, match=r"could not be compiled \(no space left\)"):
        first = terms.hidden(a, b)
    again = terms.hidden(a, b)  # warnings are errors here
    assert torch.equal(first, EAGER.hidden(a, b))
    assert torch.equal(again, first)
    with pytest.raises(RuntimeError, match="no space left"):
        compiled.choose("compiled", CPU, torch.float32, 1).hidden(a, b)
