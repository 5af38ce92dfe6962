"""Each Triton kernel, and flash-linear-attention's, against torch in float64."""

import os

import pytest
import torch
from exactly import CLOSE, apart, assert_close

from refine_kernels.backends import fla_decay_fault
from refine_kernels.delta_rule import SharedState, delta_rule, delta_rule_shared
from refine_kernels.gated_norm import gated_norm, rms_norm
from refine_kernels.lact_update import FastTokens, FastWeights, UpdateRule, lact_update
from refine_kernels.short_conv import short_conv, three_short_convs
from refine_kernels.swiglu import swiglu
from refine_kernels.token_stats import token_stats

pytestmark = pytest.mark.gpu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def whole_rows(place, kernels, dtype, length, decay, given):
    """The delta rule with states at positions, which are known beforehand or not."""
    heads, keys, values = place.size((4, 64, 128), (1, 16, 20))
    inputs = {name: place.draw(2, length, heads, keys, dtype=dtype) for name in "qk"}
    inputs["v"] = place.draw(2, length, heads, values, dtype=dtype)
    inputs["beta"] = 2 * place.uniform(2, length, heads, dtype=dtype)
    inputs["initial_state"] = place.draw(2, heads, keys, values)
    if decay:
        inputs["log_decay"] = -place.uniform(2, length, heads)
    index = [[0, 1, 17, length], [length - 1, length // 2, length // 2, 5]]
    positions = torch.tensor(index, device=place.device)

    def run(backend, **leaves):
        out = delta_rule(
            **leaves, normalize_qk=True, keep_trail=not given,
            positions=positions if given else None, backend=backend,
        )  # fmt: skip
        return {"output": out.output, "state": out.state, "states": out.trail.at(positions)}

    assert_close(apart(run, inputs, kernels), CLOSE[dtype], 3 + len(inputs))


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("length", ["long"] if INTERPRETED else ["short", "long"])
def test_delta_rule(place, products, length, decay, given):
    tokens = 100 if length == "short" else place.size(1300, 70)
    whole_rows(place, "triton", products, tokens, decay, given)


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("length", [100, 1300])
def test_delta_rule_by_fla(gpu, length, decay):
    if decay and (fault := fla_decay_fault()):
        pytest.skip(fault)
    whole_rows(gpu, "fla", torch.bfloat16, length, decay, given=False)


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("steps", ["at once", "token by token", "many"])
def test_forks_of_shared_states(place, products, steps, decay):
    many = place.size([12, 6], [3, 9])
    steps = {"at once": [5], "token by token": [1, 1, 2], "many": many}[steps]
    states, copies, length = 2, place.size(3, 2), sum(steps)
    heads, keys, values = place.size((4, 64, 128), (1, 16, 20))
    of_token = (states * copies, length, heads)
    inputs = {name: place.draw(*of_token, keys, dtype=products) for name in "qk"}
    inputs["v"] = place.draw(*of_token, values, dtype=products)
    inputs["beta"] = place.uniform(*of_token, dtype=products)
    inputs["matrix"] = place.draw(states, heads, keys, values)
    if decay:
        inputs["log_decay"] = -place.uniform(*of_token)

    def run(backend, matrix, **leaves):
        state, outputs, start = SharedState(matrix, copies), [], 0
        for step in steps:
            part = {name: x[:, start : start + step] for name, x in leaves.items()}
            output, state = delta_rule_shared(
                *(part.get(name) for name in ("q", "k", "v", "beta", "log_decay")),
                state,
                normalize_qk=True,
                backend=backend,
            )
            outputs.append(output)
            start += step
        return {"output": torch.cat(outputs, 1), "state": state.fold().matrix}

    assert_close(apart(run, inputs), CLOSE[products], 2 + len(inputs))


@pytest.mark.parametrize("size", ["one", "some", "many"])
def test_statistics_of_tokens(place, products, size):
    large = {"one": (1, 50), "some": (300, 1001), "many": (5000, 32000)}
    rows, vocab_size = place.size(large, {"one": (1, 50), "some": (7, 33), "many": (40, 129)})[size]
    width = place.size(128, 8)
    inputs = {"hidden": place.draw(rows, width, dtype=products)}
    inputs["weight"] = (place.draw(vocab_size, width) / 4).to(products)
    targets = torch.randint(-1, vocab_size, (rows,), device=place.device)
    targets[0] = vocab_size - 1

    def run(backend, hidden, weight):
        found = token_stats(hidden, weight, targets, entropy=True, backend=backend)
        return {"logprob": found.logprob, "entropy": found.entropy}

    assert_close(apart(run, inputs), CLOSE[products], 4)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("gates", ["none", "one", "each"])
def test_norms(place, rows, gates, offset):
    count, width = place.size((3000, 2048), (5, 20))
    inputs = {"x": place.draw(count, width, dtype=rows), "weight": place.draw(width)}
    if gates != "none":
        inputs["gate"] = place.draw(count, width if gates == "each" else 1, dtype=rows)

    def run(backend, x, weight, gate=None):
        if gate is None:
            return {"y": rms_norm(x, weight, 1e-5, offset=offset, backend=backend)}
        return {"y": gated_norm(x, gate, weight, 1e-5, offset=offset, backend=backend)}

    assert_close(apart(run, inputs), CLOSE[rows], 1 + len(inputs))


def test_swiglu(place, rows):
    shape = place.size((3000, 5632), (5, 20))
    inputs = {name: place.draw(*shape, dtype=rows) for name in ("gate", "up")}
    errors = apart(lambda backend, gate, up: {"y": swiglu(gate, up, backend=backend)}, inputs)
    assert_close(errors, CLOSE[rows], 3)


@pytest.mark.parametrize("taps", [2, 4])
@pytest.mark.parametrize("more", [False, True])
def test_short_convolution(place, rows, more, taps):
    length, channels = place.size((1301, 1024), (9, 5))
    inputs = {"x": place.draw(2, length, channels, dtype=rows)}
    inputs["weight"] = place.draw(channels, 1, taps)
    if more:
        inputs["bias"] = place.draw(channels)
        inputs["tail"] = place.draw(2, taps - 1, channels, dtype=rows)

    def run(backend, **leaves):
        return {"y": short_conv(**leaves, backend=backend)}

    assert_close(apart(run, inputs), CLOSE[rows], 1 + len(inputs))


@pytest.mark.parametrize("wider", [1, 2])
@pytest.mark.parametrize("tailed", [False, True])
def test_three_convolutions_at_once(place, rows, tailed, wider):
    length, channels = place.size((1301, 1024), (9, 5))
    inputs = {}
    for n, size in enumerate((channels, channels, wider * channels)):
        inputs[f"x{n}"] = place.draw(2, length, size, dtype=rows)
        inputs[f"weight{n}"] = place.draw(size, 1, 4)
        if tailed:
            inputs[f"tail{n}"] = place.draw(2, 3, size, dtype=rows)

    def run(backend, **leaves):
        xs, weights, tails = (
            [x for name, x in leaves.items() if name.startswith(kind)] for kind in ("x", "w", "t")
        )
        made = three_short_convs(xs, weights, tails, backend=backend)
        return {f"y{n}": y for n, y in enumerate(made)}

    assert_close(apart(run, inputs), CLOSE[rows], 3 + len(inputs))


@pytest.mark.parametrize("per_channel", [False, True])
def test_the_loop_of_lact(place, rows, per_channel):
    length, heads, width, chunk = place.size((700, 4, 128, 256), (11, 2, 10, 4))
    of_token = (2, length, heads)
    inputs = {name: place.draw(*of_token, width, dtype=rows) for name in "qkv"}
    inputs["rates"] = 0.1 * place.uniform(*of_token, 3 * width if per_channel else 3)
    inputs["momentum"] = place.uniform(*of_token)
    for name, shape in (("w0", (width, width)), ("w1", (width, width)), ("w2", (width, width))):
        inputs[name] = place.draw(heads, *shape) / width**0.5

    def run(backend, q, k, v, rates, momentum, w0, w1, w2):
        tokens, rule = FastTokens(k, v, rates, momentum), UpdateRule(chunk, prenorm=per_channel)
        found = lact_update(q, tokens, FastWeights(w0, w1, w2), rule, backend=backend)
        return {"output": found.output}

    assert_close(apart(run, inputs), 2 * CLOSE[rows], 1 + len(inputs))
