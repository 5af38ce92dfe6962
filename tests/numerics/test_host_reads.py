"""What a forward reads back from the device: nothing but how long its rows are, and once.

Tensors of the device ``meta`` have no numbers, so that any reading of one is an error.
"""

from contextlib import nullcontext

import pytest
import tiny
import torch

from refine_kernels.host import known_on_host, on_host
from refine_pl.backbones.base import Forks

WIDTH = 30


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch):
    """It does not know the device."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def on_meta(policy):
    return policy.to(torch.float32).to("meta")


def known(numbers):
    numbers = torch.tensor(numbers)
    return known_on_host(numbers.to("meta"), numbers)


@pytest.mark.parametrize("make", [tiny.lact, tiny.delta_net])
def test_training_reads_nothing(make):
    policy = on_meta(make())
    tokens = torch.zeros(2, WIDTH, dtype=torch.int64, device="meta")
    output = policy(tokens)
    output.hidden.sum().backward()
    assert output.hidden.shape == (2, WIDTH, 16)


@pytest.mark.parametrize("options", [{}, {"use_momentum": True, "use_muon": True}])
def test_lacts_forks_read_their_positions_once(options):
    policy = on_meta(tiny.lact(**options))
    tokens = torch.zeros(2, WIDTH, dtype=torch.int64, device="meta")
    positions = known([[3, 8, 15], [1, 16, 17]])
    forks = Forks(
        positions,
        torch.zeros(2, 3, 2, 9, dtype=torch.int64, device="meta"),  # past the end of a chunk
        torch.ones(2, 3, dtype=torch.bool, device="meta"),
    )
    num_tokens = known([WIDTH, 21])
    output = policy(tokens, num_tokens, forks=forks, keep_trail=True)
    (output.hidden.sum() + output.fork_hidden.sum()).backward()
    state = output.trail.at(positions).fork(2)
    for _ in range(3):  # one token after the other, some of them filling a chunk
        output = policy(torch.zeros(12, 3, dtype=torch.int64, device="meta"), state=state)
        state = output.state
    assert output.hidden.shape == (12, 3, 16)


def test_positions_that_nobody_has_read_are_an_error_here():
    policy = on_meta(tiny.lact())
    tokens = torch.zeros(2, WIDTH, dtype=torch.int64, device="meta")
    trail = policy(tokens, keep_trail=True).trail
    with pytest.raises((NotImplementedError, RuntimeError)):
        trail.at(torch.ones(2, 1, dtype=torch.int64, device="meta"))


def test_a_tensor_is_read_once():
    assert on_host(known([4, 5])).tolist() == [4, 5]
    numbers = torch.tensor([1])
    assert on_host(numbers) is numbers
