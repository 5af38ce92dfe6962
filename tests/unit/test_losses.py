"""Losses: golden vectors, gradients, masks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from safetensors.torch import load_file
from torch import Tensor

from refine_pl.errors import ConfigError
from refine_pl.losses import ClippedPolicy, LossSum, count_ntp_tokens, kl_to_reference, ntp_targets
from refine_pl.records import Batch

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "grpo.safetensors")
SHAPE = (2, 3, 4, 5)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities now and then, advantages and a mask; ratios far outside the clip too."""
    generator = torch.Generator().manual_seed(3)
    old = -3 * torch.rand(SHAPE, generator=generator, dtype=dtype)
    new = old + 1.5 * torch.randn(SHAPE, generator=generator, dtype=dtype)
    advantages = torch.randn(*SHAPE[:3], 1, generator=generator, dtype=dtype)
    loss_mask = torch.ones(SHAPE[:2], dtype=torch.bool)
    loss_mask[0, 2] = loss_mask[1, 0] = False
    return new, old, advantages, loss_mask[:, :, None, None].expand(SHAPE)


def totals(made: LossSum) -> dict[str, Tensor]:
    """The sums alone; each must be over what the mask counts."""
    return {name: total for name, (total, _) in made.sums.items()}


def test_golden() -> None:
    logprobs = GOLDEN["log_probs"].clone().requires_grad_()
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    made = ClippedPolicy()(logprobs, GOLDEN["old_log_probs"], GOLDEN["token_advantages"], mask)
    sums = totals(made)
    (made.total / mask.sum()).backward()
    torch.testing.assert_close(logprobs.grad, GOLDEN["grad_log_probs"], rtol=1e-5, atol=1e-7)
    names = ("policy_loss", "clip_fraction", "approx_kl", "dual_clip_fraction")
    for name in names:
        torch.testing.assert_close(sums[name] / mask.sum(), GOLDEN[name], rtol=1e-5, atol=1e-7)
    assert set(sums) == {*names, "ratio"}
    assert not any(value.requires_grad for value in sums.values())


@pytest.mark.parametrize("dual_clip", [3.0, 1.5, None])
def test_against_plain_python(dual_clip: float | None) -> None:
    new, old, advantages, mask = inputs()
    made = ClippedPolicy(0.1, 0.3, dual_clip)(new, old, advantages, mask)
    loss, sums = made.total, totals(made)
    expected = dict.fromkeys(sums, 0.0)
    for index in mask.nonzero().tolist():
        a = advantages[tuple(index[:3])].item()
        r = (new[tuple(index)] - old[tuple(index)]).exp().item()
        plain, clipped = -a * r, -a * min(max(r, 0.9), 1.3)
        value = max(plain, clipped)
        expected["clip_fraction"] += clipped > plain
        expected["ratio"] += r
        expected["approx_kl"] += (old[tuple(index)] - new[tuple(index)]).item()
        if dual_clip is not None and a < 0 and value > -dual_clip * a:
            value = -dual_clip * a
            expected["dual_clip_fraction"] += 1
        expected["policy_loss"] += value
    assert {name: value.item() for name, value in sums.items()} == pytest.approx(expected)
    assert loss.item() == pytest.approx(expected["policy_loss"])
    assert expected["clip_fraction"] > 5
    assert dual_clip is None or expected["dual_clip_fraction"] > 5


def test_gradients() -> None:
    new, old, advantages, mask = inputs()
    new.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: ClippedPolicy()(x, old, advantages, mask).total, (new,), eps=1e-7, atol=1e-6
    )
    assert torch.autograd.gradcheck(lambda x: kl_to_reference(x, old, mask), (new,), atol=1e-5)


def test_on_policy_gradient_is_minus_the_advantage() -> None:
    _, old, advantages, mask = inputs()
    new = old.clone().requires_grad_()
    made = ClippedPolicy()(new, old, advantages, mask)
    sums = totals(made)
    made.total.backward()
    torch.testing.assert_close(new.grad, (-advantages * mask).expand(SHAPE))
    assert sums["ratio"] == mask.sum()
    assert sums["clip_fraction"] == sums["dual_clip_fraction"] == sums["approx_kl"] == 0


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf, 1e4])
def test_masked_entries_give_no_loss_and_no_gradient(junk: float) -> None:
    new, old, advantages, mask = inputs(torch.float32)
    group_mask = mask[..., :1]

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
        logprobs = tensors[0].clone().requires_grad_()
        made = ClippedPolicy()(logprobs, tensors[1], tensors[2], mask)
        loss, sums = made.total, totals(made)
        kl = kl_to_reference(logprobs, tensors[1], mask)
        (loss + kl).backward()
        assert logprobs.grad is not None
        return loss, kl, sums, logprobs.grad

    clean = run(new, old, advantages)
    spoilt = run(
        new.masked_fill(~mask, junk),
        old.masked_fill(~mask, -junk),
        advantages.masked_fill(~group_mask, junk),
    )
    assert torch.equal(clean[0], spoilt[0])
    assert torch.equal(clean[1], spoilt[1])
    assert clean[2] == spoilt[2]
    assert torch.equal(clean[3], spoilt[3])
    assert not spoilt[3][~mask].any()


def test_an_empty_mask_is_zero_with_a_gradient() -> None:
    new, old, advantages, mask = inputs()
    new.requires_grad_()
    none = torch.zeros_like(mask)
    made = ClippedPolicy()(new, old, advantages, none)
    loss, sums = made.total, totals(made)
    (loss + kl_to_reference(new, old, none)).backward()
    assert loss == 0
    assert not any(sums.values())
    assert not new.grad.any()


def test_huge_ratios_stay_finite() -> None:
    old = torch.tensor([-200.0, -200.0, -0.1, -0.1])
    new = torch.tensor([-0.1, -0.1, -200.0, -200.0], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    mask = torch.ones(4, dtype=torch.bool)
    loss = ClippedPolicy(dual_clip=None)(new, old, advantages, mask).total
    loss.backward()
    assert loss.isfinite()
    assert new.grad.isfinite().all()


def test_no_gradient_reaches_old_logprobs_or_advantages() -> None:
    tensors = [t.requires_grad_() for t in inputs()[:3]]
    mask = inputs()[3]
    loss = ClippedPolicy()(*tensors, mask).total
    (loss + kl_to_reference(tensors[0], tensors[1], mask)).backward()
    assert tensors[0].grad is not None
    assert tensors[1].grad is None
    assert tensors[2].grad is None


def test_sums_of_micro_batches_add_up() -> None:
    new, old, advantages, mask = inputs()
    whole = ClippedPolicy()(new, old, advantages, mask)
    parts = [ClippedPolicy()(*(t[i : i + 1] for t in (new, old, advantages, mask))) for i in (0, 1)]
    torch.testing.assert_close(whole.total, parts[0].total + parts[1].total)
    for name, pair in whole.sums.items():
        for i, value in enumerate(pair):
            torch.testing.assert_close(value, parts[0].sums[name][i] + parts[1].sums[name][i])


def test_half_precision_is_computed_in_float32() -> None:
    new, old, advantages, mask = inputs(torch.bfloat16)
    made = ClippedPolicy()(new, old, advantages, mask)
    assert made.total.dtype == torch.float32
    assert {value.dtype for value in totals(made).values()} == {torch.float32}


def test_built_by_jsonargparse() -> None:
    subclass = ArgumentParser(exit_on_error=False)
    subclass.add_subclass_arguments(ClippedPolicy, "policy_loss")
    path = "refine_pl.losses.ClippedPolicy"
    args = [f"--policy_loss={path}", "--policy_loss.dual_clip=null"]
    policy_loss = subclass.instantiate(subclass.parse_args(args)).policy_loss
    assert isinstance(policy_loss, ClippedPolicy)
    assert policy_loss.dual_clip is None

    nested = ArgumentParser(exit_on_error=False)
    nested.add_class_arguments(ClippedPolicy, "policy_loss")
    policy_loss = nested.instantiate(
        nested.parse_args(["--policy_loss.clip_ratio_high=0.28"])
    ).policy_loss
    assert (policy_loss.clip_ratio_low, policy_loss.clip_ratio_high) == (0.2, 0.28)
    with pytest.raises(Exception, match="clip_ratio_low"):
        nested.parse_args(["--policy_loss.clip_ratio_low=-1"])


def test_dual_clip_must_exceed_one() -> None:
    with pytest.raises(ConfigError, match=r"dual_clip is 0\.5"):
        ClippedPolicy(dual_clip=0.5)


def test_ntp_targets() -> None:
    tokens = torch.tensor([[5, 6, 7, 8], [1, 2, -77, 99], [3, 0, 0, 0], [4, 4, 4, 4]])
    num_tokens = torch.tensor([4, 2, 1, 0])
    targets = ntp_targets(Batch(tokens, num_tokens, (0, 1, 2, 3)))
    assert targets.dtype == torch.int64
    assert targets.tolist() == [[6, 7, 8, -1], [2, -1, -1, -1], [-1] * 4, [-1] * 4]
    count = count_ntp_tokens(num_tokens)
    assert count.dtype == torch.int64
    assert count == (targets >= 0).sum() == 4


def test_kl_to_reference() -> None:
    new, old, _, mask = inputs()
    difference = (old - new)[mask]
    expected = (difference.exp() - difference - 1).sum()
    torch.testing.assert_close(kl_to_reference(new, old, mask), expected)
    assert kl_to_reference(new, new, mask) == 0
    assert kl_to_reference(new, old, mask) > 0
