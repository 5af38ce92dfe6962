"""The published models' numbers, through ``load_pretrained`` on the folder itself."""

import golden_checks
import pytest
from safetensors.torch import load_file

from refine_pl.backbones import (
    DeltaNet,
    GatedDeltaNet,
    LaCT,
    OlmoHybrid,
    Qwen35,
    Qwen35Multimodal,
    load_pretrained,
)

FOLDERS = {
    "delta_net_base": (DeltaNet, 31),
    "gated_delta_net_base": (GatedDeltaNet, 39),
    "lact_fp32": (LaCT, 47),
    "lact_momentum": (LaCT, 45),
    "qwen3_5_base": (Qwen35, 56),
    "olmo_hybrid_base": (OlmoHybrid, 62),
}
OUTPUTS_ONLY = "qwen3_5_multimodal"  # beside a vision tower, whose weights are not of the model
HYBRIDS = ("qwen3_5_base", "olmo_hybrid_base", OUTPUTS_ONLY)


def test_every_folder_is_checked():
    folders = {path.name for path in golden_checks.FOLDER.iterdir() if path.is_dir()}
    assert folders == {*FOLDERS, OUTPUTS_ONLY}


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_loss_and_gradients(name):
    policy = load_pretrained(str(golden_checks.FOLDER / name))
    kind, gradients = FOLDERS[name]
    assert type(policy) is kind
    assert golden_checks.check(policy, name) == gradients


def test_the_text_part_of_a_multimodal_model():
    folder = golden_checks.FOLDER / OUTPUTS_ONLY
    policy = load_pretrained(str(folder))
    assert type(policy) is Qwen35Multimodal
    golden_checks.check_outputs(policy, load_file(folder / "expected.safetensors"))
    stored = load_file(folder / "model.safetensors")
    assert policy.carried.keys() == {name for name in stored if name.startswith("model.visual.")}
    assert len(policy.carried) == 21


@pytest.mark.parametrize("name", HYBRIDS)
def test_greedy_continuations(name):
    policy = load_pretrained(str(golden_checks.FOLDER / name))
    assert golden_checks.check_greedy(policy, name) == 16
