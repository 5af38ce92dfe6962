"""How far kernels are from the same operation by torch in float64, gradients included."""

import torch
from closeness import relative_unless_zero

CLOSE = {torch.bfloat16: 0.03, torch.float16: 0.005, torch.float32: 2e-5}


def apart(run, inputs, kernels="triton"):
    """Errors of outputs and gradients, by name.

    Args:
        run: ``run(backend, **inputs)`` returns tensors by name.
        inputs: tensors by name, all of which get gradients; ``torch`` gets the same numbers in
            float64.
        kernels: the backend that is compared with ``torch``.
    """
    results = []
    for backend in (kernels, "torch"):
        leaves = {name: x.detach().clone() for name, x in inputs.items()}
        if backend == "torch":
            leaves = {name: x.double() for name, x in leaves.items()}
        for leaf in leaves.values():
            leaf.requires_grad_()
        made = run(backend, **leaves)
        loss = 0
        for y in made.values():
            weight = torch.arange(y.numel(), device=y.device, dtype=torch.float64).cos()
            loss = loss + (y.double().flatten() * weight).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        named = {f"d_{name}": d for name, d in zip(leaves, gradients, strict=True)}
        results.append({name: y.detach() for name, y in made.items()} | named)
    got, expected = results
    assert all(y.isfinite().all() for y in expected.values())
    return {name: relative_unless_zero(y, expected[name]) for name, y in got.items()}


def assert_close(errors, close, count):
    """All of ``count`` tensors are near."""
    assert len(errors) == count, list(errors)
    assert all(error < close for error in errors.values()), errors
