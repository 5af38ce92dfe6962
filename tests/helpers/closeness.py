"""How far apart two tensors are, in one number."""

import torch


@torch.no_grad()
def relative(got, expected):
    """The norm of the difference, against that of what is expected."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@torch.no_grad()
def relative_unless_zero(got, expected):
    """What is zero, as the gradient of a decay that nothing follows, is compared as such."""
    size = expected.double().norm()
    apart = (got.double() - expected.double()).norm()
    return float(apart / size if size > 1e-6 else apart)


@torch.no_grad()
def logits_of(policy, tokens):
    """[B, T, V] of sequences."""
    hidden = policy(tokens).hidden
    return policy.head(hidden.flatten(0, 1), logits=True).logits.unflatten(0, tokens.shape)
