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
from refine_pl.backbones.olmo_hybrid import OlmoHybrid, OlmoHybridOptions
from refine_pl.backbones.pretrained import load_pretrained, save_pretrained
from refine_pl.backbones.qwen3_5 import Qwen35, Qwen35Options
from refine_pl.backbones.qwen3_5_multimodal import Qwen35Multimodal, Qwen35MultimodalOptions

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
    "OlmoHybrid",
    "OlmoHybridOptions",
    "Qwen35",
    "Qwen35Multimodal",
    "Qwen35MultimodalOptions",
    "Qwen35Options",
    "State",
    "StateTrail",
    "load_pretrained",
    "save_pretrained",
]
