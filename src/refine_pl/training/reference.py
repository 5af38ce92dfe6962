"""The frozen copy of the policy that a KL term compares with, in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def fit_reference(state: Mapping[str, Tensor], wanted: bool) -> Mapping[str, Tensor]:
    """A checkpoint's weights with those of a reference model if it is ``wanted``, else without.

    A checkpoint without a reference was written before this run turned the KL on: the reference is
    then the policy of the checkpoint.
    """
    if not wanted:
        return {k: v for k, v in state.items() if not k.startswith("reference.")}
    if any(key.startswith("reference.") for key in state):
        return state
    reference = {
        k.replace("policy.", "reference.", 1): v.clone()
        for k, v in state.items()
        if k.startswith("policy.")
    }
    return {**state, **reference}
