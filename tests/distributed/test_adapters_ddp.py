"""Two processes train an adapter as one does, and save it alone."""

import pytest
import torch
from processes import run_processes
from shared_adapters import train_adapter

from refine_pl.backbones import save_pretrained


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    from runs import backbone

    save_pretrained(backbone(), tmp_path / "model")
    (one,) = run_processes(train_adapter, 1, str(tmp_path / "model"), tmp_path / "one")
    two = run_processes(train_adapter, 2, str(tmp_path / "model"), tmp_path / "two")
    assert two[0]["trained"].keys() == two[1]["trained"].keys() == one["trained"].keys()
    assert len(one["trained"]) == 32
    for name, value in one["trained"].items():
        torch.testing.assert_close(two[0]["trained"][name], value, rtol=1e-9, atol=1e-11)
        assert torch.equal(two[0]["trained"][name], two[1]["trained"][name])
    assert one["moved"] > 0.01
    assert two[0]["kl"] == pytest.approx(one["kl"], rel=1e-9)
    for folder in ("one", "two"):
        held = torch.load(tmp_path / folder / "step=4.ckpt", weights_only=True)["state_dict"]
        assert all(".lora_" in name for name in held)
        assert len(held) == 3 * 32  # of the policy, the reference and the yardstick
