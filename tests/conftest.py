"""Set before anything imports torch: no network, and one thread for the small tensors of tests."""

import gc
import os
import sys

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests run side by side; threads that wait for each other on busy processors are far slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Parsers and traced graphs make objects by the million, few of them in cycles: at Python's own
# thresholds a tenth of the suite's time goes into looking for those.
gc.set_threshold(50_000, 20, 20)

_OF_A_LAUNCH = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def _not_of_a_launch():
    """A trainer of several processes leaves its place among them in the environment."""
    for name in _OF_A_LAUNCH:
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _leaves_no_autocast():
    """A test that leaves an autocast on would change the numbers of every test after it."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        for device in ("cpu", "cuda"):
            torch.set_autocast_enabled(device, False)
        pytest.fail("this test has left an autocast on")
