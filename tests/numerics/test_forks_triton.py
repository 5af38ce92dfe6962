"""Short continuations of shared states by Triton kernels, in Triton's interpreter.

Against the plain recurrence in float64: outputs, states and every gradient, with every buffer full
of NaN before a kernel writes it. In a process of its own, which is this file run as a script. In
float32 products are exact there; float16 shows that a state is read as the sum of two numbers.
"""

import json
import sys

import interpreted
import pytest
import torch
from closeness import relative_unless_zero as relative

pytestmark = pytest.mark.slow

CLOSE = 2e-6
CASES = {
    # forks of each state, tokens of each call, widths, decay, normalised
    "five tokens, decay": (3, [5], (24, 20), True, True),
    "five tokens": (3, [5], (24, 20), False, True),
    "not normalised": (2, [3], (16, 16), True, False),
    "one fork, one token": (1, [1], (16, 40), True, True),
    "token by token, decay": (2, [1] * 4, (16, 16), True, True),
    "token by token": (2, [1] * 4, (20, 33), False, False),
    "pieces": (9, [2, 3], (16, 16), True, True),
    "more than an unrolled loop has": (2, [11], (130, 16), True, True),
    "folded, then more": (2, [15, 1, 2], (16, 16), True, True),
    "more than a launch has": (2, [33], (16, 16), True, True),
}


def test_outputs_states_and_all_gradients():
    pytest.importorskip("triton")
    found = interpreted.run(__file__)
    split = found.pop("in 16 bits")
    assert found.keys() == CASES.keys()
    for name, (*_, decay, _) in CASES.items():
        compared = {"output", "state", "q", "k", "v", "beta", "matrix"}
        assert found[name].keys() == compared | ({"log_decay"} if decay else set())
        assert all(error < CLOSE for error in found[name].values()), (name, found[name])
    # The writes are float32. Were the state rounded to 16 bits, they would be 1e-4 apart.
    assert split.pop("writes") < CLOSE
    assert split.keys() == {"output", "q", "k", "v", "beta", "log_decay", "matrix"}
    assert all(error < 1e-3 for error in split.values()), split


def draw(copies, steps, widths, decay, normalize, dtype=torch.float32):
    rows, length, (keys, values) = 2 * copies, sum(steps), widths
    q, k, v = (torch.randn(rows, length, 2, width) for width in (keys, keys, values))
    # Without normalisation long keys explode; strengths of up to 2 are allowed.
    k = k if normalize else 0.3 * k
    beta = 2 * torch.rand(rows, length, 2)
    beta[:, length // 2] = 0
    given = {"q": q, "k": k, "v": v, "beta": beta}
    given = {name: x.to(dtype) for name, x in given.items()}
    if decay:
        given["log_decay"] = -torch.rand(rows, length, 2)
    return given | {"matrix": torch.randn(2, 2, keys, values)}


def expect(given, copies, normalize, steps=None):
    from refine_kernels.delta_rule.reference import delta_rule_reference

    leaves = {name: x.double().requires_grad_() for name, x in given.items()}
    tokens = {name: x for name, x in leaves.items() if name != "matrix"}
    initial = leaves["matrix"].repeat_interleave(copies, 0)
    output, states = delta_rule_reference(
        **tokens, initial_state=initial, normalize_qk=normalize
    )  # fmt: skip
    return leaves, {"output": output, "state": states[:, -1]}


def read(given, copies, normalize, steps):
    from refine_kernels.delta_rule import SharedState, delta_rule_shared

    leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
    state, outputs, start = SharedState(leaves["matrix"]).fork(copies), [], 0
    for step in steps:
        part = [leaves[name][:, start : start + step] for name in ("q", "k", "v", "beta")]
        decay = leaves["log_decay"][:, start : start + step] if "log_decay" in leaves else None
        output, state = delta_rule_shared(
            *part, decay, state, normalize_qk=normalize, backend="triton"
        )
        outputs.append(output)
        start += step
    return leaves, {"output": torch.cat(outputs, 1), "state": state.fold().matrix}


def compare(copies, steps, widths, decay, normalize):
    given = draw(copies, steps, widths, decay, normalize)
    results = []
    for function in (expect, read):
        leaves, parts = function(given, copies, normalize, steps)
        loss = parts["output"].sin().sum() + parts["state"].cos().sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        results.append(parts | dict(zip(leaves, gradients, strict=True)))
    return {name: relative(results[1][name], x) for name, x in results[0].items()}


def compare_in_16_bits():
    from refine_kernels.delta_rule import SharedState, delta_rule_shared

    given = draw(3, [5], (24, 20), True, True, torch.float16)
    results = []
    for backend, kind in (("torch", torch.float64), ("triton", None)):
        leaves = {n: x.to(kind or x.dtype, copy=True).requires_grad_() for n, x in given.items()}
        *tokens, matrix = leaves.values()
        output, state = delta_rule_shared(
            *tokens, SharedState(matrix, 3), normalize_qk=True, backend=backend
        )
        loss = output.double().sin().sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        found = {"output": output, "writes": state.writes}
        results.append(found | dict(zip(leaves, gradients, strict=True)))
    return {name: relative(results[1][name], x) for name, x in results[0].items()}


def main():
    interpreted.patch_the_language_once()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # fills what is not initialised with NaN
    assert torch.empty(3).isnan().all()
    torch.manual_seed(0)
    found = {name: compare(*case) for name, case in CASES.items()}
    print(json.dumps(found | {"in 16 bits": compare_in_16_bits()}))  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
