"""What a checkpoint keeps of a run beside what Lightning does, and what a resume takes from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from refine_pl.tokenizers import Tokenizer

if TYPE_CHECKING:
    from refine_pl.training.module import RefineModule

COUNTERS = ("iteration", "updates", "skipped_steps", "tokens_seen")
KEY = "refine_pl"  # in a checkpoint


def run_state(module: RefineModule) -> dict[str, Any]:
    """The counters and what the model was made from, as plain values."""
    state: dict[str, Any] = {name: getattr(module, name) for name in COUNTERS}
    state["backbone"] = module.policy.config()  # for export
    spec = module.tokenizer.spec() if isinstance(module.tokenizer, Tokenizer) else None
    if spec is not None:
        state["tokenizer"] = spec  # for test, predict and lm-eval
    return state


def reset_counters(module: RefineModule) -> None:
    """Count from 0."""
    for name in COUNTERS:
        setattr(module, name, 0)


def restore_counters(module: RefineModule, checkpoint: Mapping[str, Any]) -> None:
    """Count from where the run was that wrote the checkpoint."""
    for name, value in checkpoint.get(KEY, {}).items():
        if name in COUNTERS:
            setattr(module, name, int(value))


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
