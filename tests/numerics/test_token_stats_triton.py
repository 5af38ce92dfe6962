"""Token statistics by Triton kernels, in Triton's interpreter, against whole logits in float64.

Every buffer is full of NaN before a kernel writes it. In a process of its own, which is this file
run as a script, in float32.
"""

import json
import sys

import interpreted
import pytest
import torch
from closeness import relative_unless_zero as relative

pytestmark = pytest.mark.slow

CLOSE = 3e-6
# tokens, vocabulary, logits of a block
SIZES = {
    "one token, two words": (1, 2, 1),
    "blocks of two": (7, 37, 80),
    "one block": (9, 16, 10**6),
    "two tiles of columns": (23, 129, 10**6),
}
USES = {"both": (True, True), "log-probability": (True, False), "entropy": (False, True)}


@pytest.fixture(scope="module")
def found():
    pytest.importorskip("triton")
    return interpreted.run(__file__)


def test_statistics_and_all_gradients(found):
    names = {f"{size}: {use}" for size in SIZES for use in USES}
    assert names < found.keys()
    for name in names:
        errors = found[name]
        assert errors.keys() >= {"hidden", "weight"}
        assert len(errors) == (5 if name.endswith("both") else 4 if "log" in name else 3)
        assert all(error < CLOSE for error in errors.values()), (name, errors)


def test_what_is_large_stays_finite_and_what_is_not_a_number_is_told(found):
    assert found["large"] == {"logprob": [0.0, -600.0], "entropy": [0.0, 0.0]}
    assert found["not a number"] == {"logprob": True, "entropy": True}


def test_the_first_of_equals_is_the_most_likely(found):
    assert found["equals"] == [False, True, False, False]


def test_gradients_of_one_input_alone(found):
    assert found["frozen weight"] < CLOSE
    assert found["frozen hidden"] < CLOSE


def test_one_buffer_holds_all_logits(found):
    """Neither direction has more logits at once than a block has."""
    assert found["largest"] == {"elements": 4 * 64, "launches": 2 * 6}


def draw(rows, vocab_size):
    hidden = torch.randn(rows, 6)
    return hidden, 0.4 * torch.randn(vocab_size, 6), torch.randint(-1, vocab_size, (rows,))


def compare(rows, vocab_size, logprob, entropy):
    from refine_kernels.token_stats import token_stats
    from refine_kernels.token_stats.reference import token_stats_reference

    hidden, weight, targets = draw(rows, vocab_size)
    exact = [x.double().requires_grad_() for x in (hidden, weight)]
    leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
    expected = token_stats_reference(*exact, targets)
    got = token_stats(
        *leaves, targets if logprob else None, entropy=entropy, correct=logprob, backend="triton"
    )
    factors = torch.randn(2, rows)
    losses = [0, 0]
    errors = {}
    for name, wanted in (("logprob", logprob), ("entropy", entropy)):
        if wanted:
            pair = expected[0 if name == "logprob" else 1], getattr(got, name)
            errors[name] = relative(pair[1], pair[0])
            factor = factors[0 if name == "logprob" else 1]
            losses = [loss + (factor * x).sum() for loss, x in zip(losses, pair, strict=True)]
    if logprob:
        errors["correct"] = float((got.correct != expected[2]).sum())
    gradients = [torch.autograd.grad(*x) for x in zip(losses, (exact, leaves), strict=True)]
    for name, right, mine in zip(("hidden", "weight"), *gradients, strict=True):
        errors[name] = relative(mine, right)
    return errors


def special():
    from refine_kernels.token_stats import kernel_op, token_stats
    from refine_kernels.token_stats.kernel_op import TritonTokenStats

    weight, zero = torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 0])

    def stats(hidden):
        found = token_stats(hidden, weight, zero, entropy=True, backend="triton")
        return {"logprob": found.logprob, "entropy": found.entropy}

    large, nan = stats(torch.tensor([[300.0], [-300.0]])), stats(torch.tensor([[torch.nan]] * 2))
    # Columns of different tiles, and of one: words 3 and 19 are equally likely.
    alike = torch.zeros(40, 1)
    alike[[3, 19]] = 1.0
    equals = token_stats(
        torch.ones(4, 1), alike, torch.tensor([19, 3, 0, -1]), correct=True, backend="triton"
    )
    hidden, weight, targets = draw(5, 33)
    both = [x.clone().requires_grad_() for x in (hidden, weight)]
    right = torch.autograd.grad(token_stats(*both, targets).logprob.sum(), both)
    frozen = {}
    for place, name in enumerate(("frozen weight", "frozen hidden")):
        leaves = [hidden.clone(), weight.clone()]
        leaves[place].requires_grad_()
        loss = token_stats(*leaves, targets, backend="triton").logprob.sum()
        frozen[name] = relative(torch.autograd.grad(loss, leaves[place])[0], right[place])
    return {
        "large": {name: x.tolist() for name, x in large.items()},
        "not a number": {name: bool(x.isnan().all()) for name, x in nan.items()},
        "equals": equals.correct.tolist(),
        **frozen,
        "largest": largest(kernel_op, TritonTokenStats),
    }


def largest(kernel_op, op):
    from refine_kernels.launching import recorded

    kernel_op.BLOCK_ELEMENTS = 4 * 64
    hidden = torch.empty(23, 5, device="meta", requires_grad=True)
    weight = torch.empty(64, 5, device="meta", requires_grad=True)
    targets = torch.empty(23, dtype=torch.int64, device="meta")
    with recorded() as launches:
        logprob, entropy, _ = op.apply(hidden, weight, targets, True, False, torch.float32)
        (logprob.sum() + entropy.sum()).backward()
    logits = {launch.arguments["logits"].numel() for launch in launches}
    return {"elements": max(logits), "launches": len(launches)}


def main():
    from refine_kernels.token_stats import kernel_op

    kernel_op._COLUMNS = 16
    interpreted.patch_the_language_once()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # fills what is not initialised with NaN
    assert torch.empty(3).isnan().all()
    torch.manual_seed(0)
    found = {}
    for size, (rows, vocab_size, budget) in SIZES.items():
        kernel_op.BLOCK_ELEMENTS = budget
        for use, wanted in USES.items():
            found[f"{size}: {use}"] = compare(rows, vocab_size, *wanted)
    print(json.dumps(found | special()))  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
