"""The delta rule's Triton kernels in Triton's interpreter against the plain recurrence.

Every buffer is filled with NaN before a kernel writes it. The interpreter needs a process of its
own, which is this file run as a script; products of bfloat16 are wrong there, so it is float32.
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
    # length, chunk, widths, decay, normalised, initial state, positions given beforehand
    "uneven, decay": (37, 16, (24, 20), True, True, True, True),
    "uneven": (37, 16, (24, 20), False, True, False, True),
    "whole chunks, not normalised": (64, 32, (16, 16), False, False, True, True),
    "whole chunks, decay, not normalised": (48, 16, (16, 40), True, False, True, True),
    "one token, two blocks": (1, 64, (16, 16), True, True, True, True),
    "chunk of 64": (70, 64, (16, 16), True, True, True, True),
    "coarse trail": (40, 16, (16, 16), True, True, True, False),
}


def test_outputs_states_and_all_gradients():
    pytest.importorskip("triton")
    found = interpreted.run(__file__)
    assert found.keys() == CASES.keys()
    for name, (_, _, _, decay, _, initial, _) in CASES.items():
        compared = {"output", "state", "states", "q", "k", "v", "beta"}
        compared |= {"log_decay"} if decay else set()
        compared |= {"initial_state"} if initial else set()
        assert found[name].keys() == compared
        assert all(error < CLOSE for error in found[name].values()), (name, found[name])


def test_its_kernels_are_refused_without_a_gpu():
    from refine_kernels.delta_rule import delta_rule

    x = torch.zeros(1, 2, 1, 3)
    with pytest.raises(ValueError, match="backend 'triton' cannot run: the tensors are on cpu"):
        delta_rule(x, x, x, x[..., 0], backend="triton")


def compare(length, chunk, widths, decay, normalize, initial, given):
    from refine_kernels.delta_rule import delta_rule, kernel_trail
    from refine_kernels.delta_rule.reference import delta_rule_reference

    kernel_trail.EVERY = 2
    keys, values = widths
    q, k, v = (torch.randn(2, length, 2, width) for width in (keys, keys, values))
    # Without normalisation long keys explode; strengths of up to 2 are allowed.
    inputs = {"q": q, "k": k if normalize else 0.2 * k, "v": v}
    inputs["beta"] = 2 * torch.rand(2, length, 2)
    inputs["beta"][1, length // 2 + 1 :] = 0  # padding
    if decay:
        inputs["log_decay"] = -torch.rand(2, length, 2)
    if initial:
        inputs["initial_state"] = torch.randn(2, 2, keys, values)
    edge = min(chunk, length)
    positions = torch.tensor([[0, edge, edge, length], [length - 1, length // 2, 0, length]])
    expected, actual = ({n: x.clone().requires_grad_() for n, x in inputs.items()} for _ in "12")
    output, states = delta_rule_reference(
        **{name: x.double() for name, x in expected.items()}, normalize_qk=normalize
    )
    at = torch.stack([states[b, p] for b in range(2) for p in positions[b].tolist()])
    got = delta_rule(
        **actual, normalize_qk=normalize, keep_trail=not given, chunk_size=chunk,
        positions=positions if given else None, backend="triton",
    )  # fmt: skip
    results = []
    for leaves, parts in (
        (expected, (output, states[:, -1], at)),
        (actual, (got.output, got.state, got.trail.at(positions))),
    ):
        loss = parts[0].sin().sum() + parts[1].cos().sum() + parts[2].sin().sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        named = dict(zip(("output", "state", "states"), parts, strict=True))
        results.append(named | dict(zip(leaves, gradients, strict=True)))
    return {name: relative(results[1][name], tensor) for name, tensor in results[0].items()}


def main():
    interpreted.patch_the_language_once()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # fills what is not initialised with NaN
    assert torch.empty(3).isnan().all()
    torch.manual_seed(0)
    print(json.dumps({name: compare(*case) for name, case in CASES.items()}))  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
