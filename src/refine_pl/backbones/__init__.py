"""Fast-weight language models."""

from refine_pl.backbones.base import (
    FastWeightLM,
    Forks,
    LayerState,
    LayerTrail,
    LMOutput,
    State,
    StateTrail,
)
from refine_pl.backbones.delta_net import DeltaNet

__all__ = [
    "DeltaNet",
    "FastWeightLM",
    "Forks",
    "LMOutput",
    "LayerState",
    "LayerTrail",
    "State",
    "StateTrail",
]
