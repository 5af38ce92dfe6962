"""Whole updates on a GPU that is not there: where tensors are, in which types they are multiplied,
how often the host waits, how much starts on the GPU, and how many bytes live.

In processes of their own, which are this file run as a script: torch is changed there. What is
found says nothing about speed, and nothing about numbers.
"""

import json
import sys

import interpreted
import pretended_updates as updates
import pytest

pytestmark = pytest.mark.slow


def test_whole_updates():
    pytest.importorskip("triton")
    models = interpreted.run(__file__, "whole", interpret=False)
    assert models.keys() == updates.MODELS.keys()
    wrong = {name: updates.rules_broken(name, runs) for name, runs in models.items()}
    assert not any(wrong.values()), "\n".join(f"{n}: {said}" for n in wrong for said in wrong[n])
    for runs in models.values():
        assert len(runs) == sum(len(kinds) for _, _, *kinds in updates.RUNS) == 10
        for found in runs.values():
            assert found["ops"] > 50  # it was watched
            assert found["flop"] > 1e8


def test_every_rule_can_fail():
    pytest.importorskip("triton")
    found = interpreted.run(__file__, "broken", interpret=False)
    assert EXPECTED["cpu_tensor"] in found.pop("cpu_tensor")
    assert updates.rules_broken("DeltaNet", found.pop("nothing")) == []
    said = {name: " ".join(updates.rules_broken("DeltaNet", runs)) for name, runs in found.items()}
    assert said.keys() == EXPECTED.keys() - {"cpu_tensor"}
    for name, text in said.items():
        assert EXPECTED[name] in text, (name, text)


EXPECTED = {
    "sync": "the host waits 2 times in backbones.stack.Block.forward",
    "mask": "the host waits 2 times in backbones.stack.Block.forward",
    "copy": "the host waits 4 times in backbones.stack.Block.forward",
    "float32": "products in float32",
    "starts": "starts, at most",
    "launches": "launches of 24 layers, at most",
    "bytes": "bytes, at most",
    "cpu_tensor": "a CPU tensor enters aten.add.Tensor on CUDA in backbones.stack.Block.forward",
}


def _breakers():
    """What each of the broken cases does in every layer."""
    import torch

    kept = []

    def sync(x):
        assert x.sum() > 0

    def mask(x):
        assert x[x > 0] is not None

    def copy(x):
        x.new_tensor([1.0, 2.0])
        torch.ones(3).to(x.device)

    def float32(x):
        with torch.autocast("cuda", enabled=False):
            x.float() @ x.float().mT

    def starts(x):
        for _ in range(50):
            x = x + 1

    def cpu_tensor(x):
        x + torch.ones(x.shape[-1])

    def keep(x):
        kept.append(x.clone())

    return {
        **{"nothing": lambda x: None, "sync": sync, "mask": mask, "copy": copy},
        **{"float32": float32, "starts": starts, "bytes": keep, "cpu_tensor": cpu_tensor},
    }


def _broken(name):
    """SFT of one and of two layers, with something done in each that should not be."""
    from refine_kernels.delta_rule import kernel_op

    launch, work = kernel_op.launch, _breakers().get(name)

    def often(*arguments):
        for _ in range(4):
            launch(*arguments)

    def change(policy):
        if work is not None:
            for block in policy.model.layers:
                block.mlp.register_forward_pre_hook(lambda _, inputs: work(inputs[0].detach()))

    kernel_op.launch = often if name == "launches" else launch
    grows = name in ("starts", "launches", "bytes", "nothing")
    runs = ((1, True, "SFT"), (2, True, "SFT"))
    try:
        return updates.measure("DeltaNet", runs if grows else runs[:1], change)
    except AssertionError as refusal:  # of a tensor that is not on the GPU
        return str(refusal)
    finally:
        kernel_op.launch = launch


def main(what):
    import pretended_cuda

    pretended_cuda.pretend()
    if what == "broken":  # what is refused comes last: it leaves a model half way through
        return {name: _broken(name) for name in ["nothing", *EXPECTED]}
    return {name: updates.measure(name) for name in updates.MODELS}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))  # noqa: T201
