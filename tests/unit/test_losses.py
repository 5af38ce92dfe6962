"""The terms beside the policy loss: which tokens they count, values, gradients, masks."""

from __future__ import annotations

import pytest
import torch
from policy_losses import policy_inputs

from refine_pl.losses import count_ntp_tokens, kl_to_reference, ntp_targets
from refine_pl.records import Batch


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
    new, old, _, mask = policy_inputs()
    difference = (old - new)[mask]
    expected = (difference.exp() - difference - 1).sum()
    torch.testing.assert_close(kl_to_reference(new, old, mask), expected)
    assert kl_to_reference(new, new, mask) == 0
    assert kl_to_reference(new, old, mask) > 0


def test_gradient_of_the_kl_reaches_the_policy_alone() -> None:
    new, old, _, mask = policy_inputs()
    new.requires_grad_()
    old.requires_grad_()
    kl_to_reference(new, old, mask).backward()
    assert old.grad is None
    assert torch.autograd.gradcheck(lambda x: kl_to_reference(x, old, mask), (new,), atol=1e-5)


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf, 1e4])
def test_masked_entries_change_no_kl_and_no_gradient(junk: float) -> None:
    new, old, _, mask = policy_inputs()
    found = []
    for a, b in ((new, old), (new.masked_fill(~mask, junk), old.masked_fill(~mask, -junk))):
        logprobs = a.clone().requires_grad_()
        kl = kl_to_reference(logprobs, b, mask)
        kl.backward()
        assert logprobs.grad is not None
        found.append((kl, logprobs.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    none = torch.zeros_like(mask)
    assert kl_to_reference(new, old, none) == 0
