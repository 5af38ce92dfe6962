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
from refine_pl.backbones.delta_net import DeltaNet, DeltaNetOptions
from refine_pl.backbones.gated_delta_net import GatedDeltaNet, GatedDeltaNetOptions
from refine_pl.backbones.lact import LaCT
from refine_pl.backbones.lact_options import LaCTOptions
from refine_pl.backbones.pretrained import load_pretrained, save_pretrained

__all__ = [
    "DeltaNet",
    "DeltaNetOptions",
    "FastWeightLM",
    "Forks",
    "GatedDeltaNet",
    "GatedDeltaNetOptions",
    "LMOutput",
    "LaCT",
    "LaCTOptions",
    "LayerState",
    "LayerTrail",
    "State",
    "StateTrail",
    "load_pretrained",
    "save_pretrained",
]
