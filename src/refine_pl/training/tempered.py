"""A model at another temperature: its logits divided by it."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from refine_pl.backbones.base import FastWeightLM, LMOutput


class _Tempered:
    """Reads as the policy does, and predicts from ``softmax(logits / temperature)``."""

    def __init__(self, policy: FastWeightLM, temperature: float) -> None:
        self.policy, self.temperature = policy, temperature

    def __call__(self, *args: Any, **kwargs: Any) -> LMOutput:
        output: LMOutput = self.policy(*args, **kwargs)
        return output

    def head(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The head is linear: dividing what it reads divides the logits."""
        return self.policy.head(hidden / self.temperature, *args, **kwargs)


def tempered(policy: FastWeightLM, temperature: float) -> FastWeightLM:
    """The policy at a temperature: for measuring, not for training.

    Args:
        policy: the model.
        temperature: 1 gives the model itself.
    """
    if temperature == 1:
        return policy
    return cast(FastWeightLM, _Tempered(policy, temperature))
