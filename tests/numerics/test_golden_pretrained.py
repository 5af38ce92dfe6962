"""The published models' numbers, through ``load_pretrained`` on the folder itself."""

import golden_checks
import pytest

from refine_pl.backbones import DeltaNet, GatedDeltaNet, LaCT, load_pretrained

FOLDERS = {
    "delta_net_base": (DeltaNet, 31),
    "gated_delta_net_base": (GatedDeltaNet, 39),
    "lact_fp32": (LaCT, 47),
    "lact_momentum": (LaCT, 45),
}


def test_every_folder_is_checked():
    assert {path.name for path in golden_checks.FOLDER.iterdir() if path.is_dir()} == set(FOLDERS)


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_loss_and_gradients(name):
    policy = load_pretrained(str(golden_checks.FOLDER / name))
    kind, gradients = FOLDERS[name]
    assert type(policy) is kind
    assert golden_checks.check(policy, name) == gradients
