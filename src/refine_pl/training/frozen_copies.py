"""Frozen copies of the policy in checkpoints: what a KL term compares with, and the yardstick."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def fit_copy(state: Mapping[str, Tensor], name: str, wanted: bool) -> Mapping[str, Tensor]:
    """A checkpoint's weights with those of a frozen copy if it is ``wanted``, else without.

    A checkpoint without it was written before this run asked for it: the copy is then the policy of
    the checkpoint.

    Args:
        state: of the module.
        name: of the copy: ``reference`` or ``yardstick``.
        wanted: whether the module has it.
    """
    prefix = f"{name}."
    if not wanted:
        return {k: v for k, v in state.items() if not k.startswith(prefix)}
    if any(key.startswith(prefix) for key in state):
        return state
    copy = {
        k.replace("policy.", prefix, 1): v.clone()
        for k, v in state.items()
        if k.startswith("policy.")
    }
    return {**state, **copy}
