"""Post-training on two processes is post-training on one; test-time training stays on its own."""

import pytest
import torch
from processes import run_processes
from shared_post_training import train_and_test


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["supervised", "reward"])
def test_two_processes_equal_one(kind):
    (one,), two = run_processes(train_and_test, 1, kind), run_processes(train_and_test, 2, kind)
    assert one["updates"] == two[0]["updates"] == 3 * 3
    names = [name for name in one["curve"][-1] if not name.startswith("time/")]
    assert ("answer/score" if kind == "reward" else "train/sft_loss") in names
    for here, there in zip(one["curve"], two[0]["curve"], strict=True):
        for name in names:
            assert there[name] == pytest.approx(here[name], rel=1e-6, abs=1e-9), name
    for name, value in one["parameters"].items():
        torch.testing.assert_close(two[0]["parameters"][name], value, rtol=1e-6, atol=1e-6)
    # Batches of test rows are whole: each was trained on by one process, with the same result.
    assert one["restored"]
    assert two[0]["restored"]
    assert two[1]["restored"]
    assert len(two[0]["norms"]) + len(two[1]["norms"]) == len(one["norms"]) == 5
    assert two[0]["norms"] | two[1]["norms"] == pytest.approx(one["norms"], rel=1e-9)
