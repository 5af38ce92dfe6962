"""Norms, SwiGLU, the short convolution and LaCT's loop by Triton kernels, in its interpreter.

Against the definitions in float64: outputs and every gradient, with every buffer full of NaN before
a kernel writes it. In a process of its own, which is this file run as a script, in float32.
"""

import json
import sys

import interpreted
import pytest
import torch

pytestmark = pytest.mark.slow

CLOSE = 2e-6
# rows, width, gates of a row, sigmoid, offset of the weight
NORMS = {
    "norm": ((3, 7), 20, 0, False, 0.0),
    "norm, offset": ((5,), 33, 0, False, 1.0),
    "one row": ((1,), 16, 0, False, 0.0),
    "gate": ((2, 3, 5), 24, 24, False, 0.0),
    "gate, sigmoid, offset": ((2, 11), 17, 17, True, 1.0),
    "a gate for each row": ((2, 9, 3), 12, 1, False, 0.0),
    "a gate for each row, sigmoid": ((7,), 40, 1, True, 0.0),
}
# tokens, channels, taps, bias, tail, silu
CONVS = {
    "conv": (23, 5, 4, False, False, True),
    "conv, bias and tail": (23, 5, 4, True, True, True),
    "conv, tail longer than the row": (2, 70, 4, False, True, True),
    "conv, one token": (1, 3, 4, True, True, True),
    "conv, linear": (9, 6, 3, False, True, False),
    "conv, whole blocks": (16, 64, 2, True, True, True),
    "conv, one tap": (10, 4, 1, True, False, True),
}
# tokens, channels of each, taps, tails, silu of each
THREE = {
    "three convs": (23, (5, 5, 9), 4, False, (True, True, True)),
    "three convs, tails": (23, (70, 6, 5), 4, True, (False, False, False)),
    "three convs, activated differently": (9, (5, 5, 5), 4, True, (False, False, True)),
    "three convs, as many channels": (9, (6, 6, 6), 4, True, (True, True, True)),
    "three convs, one token": (1, (64, 64, 128), 3, True, (True, True, True)),
}
# A rate for each channel, pre-norm
LACTS = {"lact": (False, False), "lact, a rate for each channel": (True, True)}


def test_outputs_and_all_gradients():
    pytest.importorskip("triton")
    found = interpreted.run(__file__)
    compared = {
        name: {"y", "x", "weight"} | ({"gate"} if n[2] else set()) for name, n in NORMS.items()
    }
    for name, (_, _, taps, bias, tail, _) in CONVS.items():
        compared[name] = {"y", "x", "weight"} | ({"bias"} if bias else set())
        compared[name] |= {"tail"} if tail and taps > 1 else set()
    for name, (*_, tails, _) in THREE.items():
        leaves = ("x", "weight", "tail") if tails else ("x", "weight")
        compared[name] = {"y"} | {f"{leaf}{n}" for leaf in leaves for n in range(3)}
    loop = {"y", "q", "k", "v", "rates", "momentum", "w0", "w1", "w2"}
    compared |= dict.fromkeys(LACTS, loop)
    compared["swiglu"] = {"y", "gate", "up"}
    compared["norm, frozen weight"] = {"y", "x"}
    assert {name: set(errors) for name, errors in found.items()} == compared
    for name, errors in found.items():
        assert all(error < CLOSE for error in errors.values()), (name, errors)


def relative(got, expected):
    return float((got.double() - expected).norm() / expected.norm())


def compare(leaves, ours, theirs):
    """Errors of an output and of the gradients of the ``leaves``, by name."""
    right = {name: x.detach().double().requires_grad_() for name, x in leaves.items()}
    results = []
    for given, function in ((leaves, ours), (right, theirs)):
        y = function(**given)
        weight = torch.arange(y.numel()).view_as(y).cos()
        wanted = [x for x in given.values() if x.requires_grad]
        gradients = torch.autograd.grad((y * weight.to(y.dtype)).sum(), wanted)
        names = [name for name, x in given.items() if x.requires_grad]
        results.append({"y": y.detach(), **dict(zip(names, gradients, strict=True))})
    mine, expected = results
    return {name: relative(x, expected[name]) for name, x in mine.items()}


def draw(*shape):
    return torch.randn(shape).requires_grad_()


def norm(rows, width, gates, sigmoid, offset):
    from refine_kernels.gated_norm import gated_norm, rms_norm
    from refine_kernels.gated_norm.reference import gated_norm_reference

    leaves = {"x": draw(*rows, width), "weight": draw(width)}
    activation = "sigmoid" if sigmoid else "silu"

    def ours(x, weight, gate=None):
        if gate is None:
            return rms_norm(x, weight, 1e-5, offset=offset, backend="triton")
        options = {"activation": activation, "offset": offset, "backend": "triton"}
        return gated_norm(x, gate, weight, 1e-5, **options)

    def theirs(x, weight, gate=None):
        return gated_norm_reference(x, gate, weight, 1e-5, sigmoid, offset)

    return compare(leaves | ({"gate": draw(*rows, gates)} if gates else {}), ours, theirs)


def conv(length, channels, taps, bias, tail, silu):
    from refine_kernels.short_conv import short_conv
    from refine_kernels.short_conv.reference import short_conv_reference

    leaves = {"x": draw(2, length, channels), "weight": draw(channels, 1, taps)}
    leaves |= {"bias": draw(channels)} if bias else {}
    leaves |= {"tail": draw(2, taps - 1, channels)} if tail and taps > 1 else {}

    def ours(x, weight, bias=None, tail=None):
        return short_conv(x, weight, bias, tail=tail, silu=silu, backend="triton")

    def theirs(x, weight, bias=None, tail=None):
        tail = x.new_zeros(2, taps - 1, channels) if tail is None else tail
        return short_conv_reference(x, weight, bias, tail, silu)

    return compare(leaves, ours, theirs)


def three(length, channels, taps, tails, silu):
    """All of them at once against one after the other by the definition."""
    from refine_kernels.short_conv import three_short_convs
    from refine_kernels.short_conv.reference import short_conv_reference

    leaves = {}
    for n, size in enumerate(channels):
        leaves |= {f"x{n}": draw(2, length, size), f"weight{n}": draw(size, 1, taps)}
        leaves |= {f"tail{n}": draw(2, taps - 1, size)} if tails else {}

    def parts(given):
        return ([x for name, x in given.items() if kind in name] for kind in ("x", "wei", "tail"))

    def ours(**given):
        return torch.cat(three_short_convs(*parts(given), silu, backend="triton"), -1)

    def theirs(**given):
        xs, weights, before = parts(given)
        before = before or [x.new_zeros(2, taps - 1, x.shape[2]) for x in xs]
        each = zip(xs, weights, before, silu, strict=True)
        return torch.cat([short_conv_reference(x, w, None, t, on) for x, w, t, on in each], -1)

    return compare(leaves, ours, theirs)


def swiglus():
    from refine_kernels.gated_norm import rms_norm
    from refine_kernels.swiglu import swiglu
    from refine_kernels.swiglu.reference import swiglu_reference

    def ours(gate, up):
        return swiglu(gate, up, backend="triton")

    frozen = torch.rand(9)
    return {
        "swiglu": compare({"gate": draw(41, 51), "up": draw(41, 51)}, ours, swiglu_reference),
        "norm, frozen weight": compare(
            {"x": draw(13, 9)},
            lambda x: rms_norm(x, frozen, 1e-5, backend="triton"),
            lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * frozen,
        ),
    }


def lact(per_channel, prenorm):
    from refine_kernels.lact_update import FastTokens, FastWeights, UpdateRule, lact_update

    width, inner = 10, 10 if per_channel else 13
    leaves = {name: draw(2, 11, 2, width) for name in "qkv"}
    leaves["rates"] = (0.1 * draw(2, 11, 2, 3 * width if per_channel else 3)).detach()
    leaves["rates"].requires_grad_()
    leaves |= {"momentum": draw(2, 11, 2), "w0": draw(2, inner, width)}
    leaves |= {"w1": draw(2, width, inner), "w2": draw(2, inner, width)}

    def run(backend):
        def function(q, k, v, rates, momentum, w0, w1, w2):
            tokens, rule = FastTokens(k, v, rates, momentum), UpdateRule(4, prenorm)
            return lact_update(q, tokens, FastWeights(w0, w1, w2), rule, backend=backend).output

        return function

    return compare(leaves, run("triton"), run("torch"))


def main():
    from refine_kernels.gated_norm import kernel_op

    kernel_op._BACKWARD, kernel_op._PROGRAMS = 64, 2  # several blocks for each program
    interpreted.patch_the_language_once()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # fills what is not initialised with NaN
    assert torch.empty(3).isnan().all()
    torch.manual_seed(0)
    found = {name: norm(*case) for name, case in NORMS.items()}
    found |= {name: conv(*case) for name, case in CONVS.items()} | swiglus()
    found |= {name: three(*case) for name, case in THREE.items()}
    found |= {name: lact(*case) for name, case in LACTS.items()}
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
