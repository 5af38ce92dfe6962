"""One tester for every reward, built in or your own.

from reward_tester import check_reward

def test_my_reward():
    check_reward(MyReward())
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from refine_pl.records import Positions, Rollouts
from refine_pl.rewards.base import Reward


def random_rollouts(
    batch_size: int = 2,
    num_segments: int = 3,
    rollouts_per_position: int = 4,
    rollout_length: int = 5,
    hidden_size: int = 8,
    vocab_size: int = 11,
    seed: int = 0,
) -> Rollouts:
    """Rollouts with random contents; the last position of the first row is not valid."""
    generator = torch.Generator().manual_seed(seed)
    b, s, n, length = batch_size, num_segments, rollouts_per_position, rollout_length

    def tokens(*size: int) -> Tensor:
        return torch.randint(vocab_size, size, generator=generator)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    valid = torch.ones(b, s, dtype=torch.bool)
    valid[0, -1] = False
    return Rollouts(
        positions=Positions(20 + 30 * torch.arange(s).expand(b, s).where(valid, 0), valid),
        tokens=tokens(b, s, n, length),
        targets=tokens(b, s, length),
        old_logprobs=-normal(b, s, n, length).abs(),
        hidden=normal(b, s, n, length, hidden_size),
        target_hidden=normal(b, s, length, hidden_size),
        target_logprobs=-normal(b, s, n, length).abs(),
    )


def check_reward(
    reward: Reward, rollouts: Rollouts | None = None, *, tokenizer: Any = None
) -> Tensor:
    """Check what training relies on: shape, dtype, finiteness, no gradient, and validity.

    Args:
        reward: the reward to check.
        rollouts: what to score; random ones by default.
        tokenizer: something with ``decode(list of int) -> str``, for rewards that read text.

    Returns:
        The scores ``[B, S, N]``, for checks of your own.

    Raises:
        AssertionError: with what is wrong.
    """
    rollouts = random_rollouts() if rollouts is None else rollouts
    if tokenizer is not None:
        reward.bind(tokenizer)
    name = type(reward).__name__
    before = [tensor.clone() for _, tensor in _tensors(rollouts)]
    score = reward.score(rollouts)

    shape = tuple(rollouts.tokens.shape[:3])
    assert isinstance(score, Tensor), f"{name} returned a {type(score).__name__}, not a tensor"
    assert tuple(score.shape) == shape, f"{name}: shape {tuple(score.shape)}, expected {shape}"
    assert score.dtype == torch.float32, f"{name}: {score.dtype}, expected torch.float32"
    assert score[rollouts.valid].isfinite().all(), f"{name}: not finite where valid"
    for old, (field, new) in zip(before, _tensors(rollouts), strict=True):
        assert torch.equal(old, new), f"{name} changed rollouts.{field}"

    tracked = {
        f: t.clone().requires_grad_() for f, t in _tensors(rollouts) if t.is_floating_point()
    }
    assert not reward.score(replace(rollouts, **tracked)).requires_grad, f"{name}: has a gradient"

    spoilt = {field: _spoil(tensor, rollouts.valid) for field, tensor in _tensors(rollouts)}
    other = reward.score(replace(rollouts, **spoilt))
    assert torch.equal(score[rollouts.valid], other[rollouts.valid]), (
        f"{name}: valid entries depend on what invalid entries hold"
    )
    return score


def _tensors(rollouts: Rollouts) -> list[tuple[str, Tensor]]:
    pairs = [(field.name, getattr(rollouts, field.name)) for field in fields(rollouts)]
    return [(name, value) for name, value in pairs if isinstance(value, Tensor)]


def _spoil(tensor: Tensor, valid: Tensor) -> Tensor:
    """Something else at the invalid entries: NaN, or token 0 (token ids stay in the vocabulary)."""
    spoilt = tensor.clone()
    spoilt[~valid] = torch.nan if tensor.is_floating_point() else 0
    return spoilt
