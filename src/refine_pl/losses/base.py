"""What every policy loss shares: what it returns, what it counts, and how masks work."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from refine_pl.errors import check_choice
from refine_pl.faults import PartError, blame, describe_tensor, fault, is_own, is_plain_float

MAX_LOG_RATIO = 20.0
"""Nats; beyond it the ratio is held constant, so that exp cannot overflow."""

_KEY = "model.policy_loss"

CountBy = Literal["tokens", "sequences"]

Sums = dict[str, tuple[Tensor, Tensor]]
"""For the log: by name, a sum over things and how many they are."""


@dataclass(frozen=True, slots=True)
class LossSum:
    """A loss summed over a micro-batch."""

    total: Tensor  # a scalar with gradients
    sums: Sums = field(default_factory=dict)  # detached


class PolicyLoss(ABC):
    """What the update does with the advantages.

    A loss of your own is a subclass with one method, :meth:`loss`, in a file of the folder you
    start ``refine-pl`` from; name it in YAML as ``class_path: my_losses.MyLoss``.

    Args:
        counts: what the mean over an optimizer step is taken over: all rollout ``tokens`` alike; or
            ``sequences``, all rollouts alike, each with the mean of its own tokens.
    """

    counts: CountBy = "tokens"  # not as text, which a dataclass of another module could not read

    def __init__(self, counts: CountBy = "tokens") -> None:
        check_choice(type(self).__name__, "counts", counts, get_args(CountBy))
        self.counts = counts

    @abstractmethod
    def loss(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, loss_mask: Tensor
    ) -> LossSum:
        """Sum over the tokens, or the rollouts, of ``loss_mask``.

        What masked entries hold (NaN included) must change nothing: :func:`mask_inputs` replaces
        it. :meth:`sum` adds up a loss of each token as ``counts`` says.

        Args:
            logprobs: ``[B, S, N, L]`` nats, of the rollout tokens now, with gradients.
            old_logprobs: ``[B, S, N, L]`` nats, when they were sampled.
            advantages: ``[B, S, N, 1]``, or anything that broadcasts to the others.
            loss_mask: ``[B, S, N, L]`` bool, the tokens that count.

        Returns:
            The sum, and any named sums for the log, the same names in every call. ``policy_loss``,
            the sum itself, need not be among them.
        """

    def __call__(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, loss_mask: Tensor
    ) -> LossSum:
        """:meth:`loss`, with ``policy_loss`` among its sums; nothing in them has a gradient.

        Raises:
            PartError: a loss of the user's own raised, or returned something else than a sum.
        """
        # Copies: what a loss does to them changes nothing else.
        inputs = logprobs.clone(), old_logprobs.detach().clone(), advantages.detach().clone()
        with blame(_KEY, self):
            made: Any = self.loss(*inputs, loss_mask)
        if not isinstance(made, LossSum):
            raise self._refuse(f"a {type(made).__name__}")
        total: Any = made.total
        if not isinstance(total, Tensor):
            raise self._refuse(f"a total that is {describe_tensor(total)}")
        if total.ndim or not is_plain_float(total, ()):
            raise self._refuse(f"a total of shape {list(total.shape)} and {total.dtype}")
        if not is_own(self):
            self._check_total(total, logprobs, loss_mask)
        sums = {"policy_loss": (total, self.count(loss_mask))} | self._sums(made.sums)
        return LossSum(total, {n: (s.detach(), c.detach()) for n, (s, c) in sums.items()})

    def _sums(self, sums: Any) -> Sums:
        """The named sums as tensors, also where they are plain numbers."""
        try:
            pairs = {n: (torch.as_tensor(s), torch.as_tensor(c)) for n, (s, c) in sums.items()}
            fits = not any(s.ndim or c.ndim for s, c in pairs.values())
        except (AttributeError, TypeError, ValueError, RuntimeError):
            pairs, fits = {}, False
        if not fits:
            raise self._refuse(f"sums that are not pairs of numbers: {str(sums)[:200]}")
        return pairs

    def _check_total(self, total: Tensor, logprobs: Tensor, loss_mask: Tensor) -> None:
        """Refuse a total that is not finite where the model is, or that nothing is learned from."""
        finite = bool((logprobs.isfinite() | ~loss_mask).all())
        if finite and not bool(total.isfinite()):
            raise self._refuse(f"a total that is {float(total)}, for finite log-probabilities")
        if logprobs.requires_grad and not total.requires_grad and bool(loss_mask.any()):
            raise self._refuse("a total without a gradient")

    def count(self, loss_mask: Tensor) -> Tensor:
        """How many tokens, or rollouts with a token, ``loss_mask [B, S, N, L]`` has: a scalar."""
        return (loss_mask.any(-1) if self.counts == "sequences" else loss_mask).sum()

    def sum(self, losses: Tensor, loss_mask: Tensor) -> Tensor:
        """``losses [B, S, N, L]``, 0 where masked, added up as ``counts`` says: a scalar."""
        if self.counts == "sequences":
            losses = losses / loss_mask.sum(-1, keepdim=True).clamp_min(1)
        return losses.sum()

    @property
    def source(self) -> str:
        """Where its code is, for messages."""
        return f"{type(self).__module__}.{type(self).__qualname__}.loss"

    def _refuse(self, came: str) -> PartError:
        allowed = "a refine_pl.losses.LossSum(total, sums): total a finite scalar tensor with a "
        allowed += "gradient, sums pairs of numbers by name"
        return fault(_KEY, self, f"returned {came}", allowed, "the policy loss")


def log_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """``clamp(logprob - old_logprob, -20, 20)``, nats: its exp is how much likelier a token is."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def mask_inputs(loss_mask: Tensor, *inputs: Tensor) -> list[Tensor]:
    """``inputs`` in float32 or float64, broadcast to ``loss_mask``, and 0 where it is false.

    Replacing the inputs, instead of multiplying the loss by 0, keeps what masked entries hold (NaN
    included) out of the loss and out of the gradient.
    """
    wide = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in inputs]
    return [
        torch.where(loss_mask, x, torch.zeros((), dtype=x.dtype, device=x.device)) for x in wide
    ]
