"""What every policy loss shares: what it returns, what it counts, and how masks work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from refine_pl.errors import UserError, check_choice

MAX_LOG_RATIO = 20.0
"""Nats; beyond it the ratio is held constant, so that exp cannot overflow."""

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

    counts: CountBy = "tokens"

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
            UserError: a loss of the user's own returned something else than a sum.
        """
        made: Any = self.loss(logprobs, old_logprobs.detach(), advantages.detach(), loss_mask)
        if not isinstance(made, LossSum):
            raise self._refuse(f"a {type(made).__name__}")
        if made.total.ndim:
            raise self._refuse(f"a total of shape {list(made.total.shape)}")
        sums = {"policy_loss": (made.total, self.count(loss_mask))} | made.sums
        return LossSum(made.total, {n: (s.detach(), c.detach()) for n, (s, c) in sums.items()})

    def count(self, loss_mask: Tensor) -> Tensor:
        """How many tokens, or rollouts with a token, ``loss_mask [B, S, N, L]`` has: a scalar."""
        return (loss_mask.any(-1) if self.counts == "sequences" else loss_mask).sum()

    def sum(self, losses: Tensor, loss_mask: Tensor) -> Tensor:
        """``losses [B, S, N, L]``, 0 where masked, added up as ``counts`` says: a scalar."""
        if self.counts == "sequences":
            losses = losses / loss_mask.sum(-1, keepdim=True).clamp_min(1)
        return losses.sum()

    def _refuse(self, came: str) -> UserError:
        kind = type(self)
        return UserError(
            f"the policy loss returned {came}",
            where=f"{kind.__module__}.{kind.__qualname__}.loss",
            allowed="a refine_pl.losses.LossSum whose total is a scalar",
        )


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
