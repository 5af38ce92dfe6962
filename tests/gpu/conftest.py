"""Where the tests of this folder run: on a GPU; or, tiny, in Triton's interpreter on the CPU.

    pytest tests/gpu                        # with a GPU
    TRITON_INTERPRET=1 pytest tests/gpu     # without; the suite does so once

The interpreter multiplies bfloat16 wrongly, so everything is float32 there.
"""

import os
from dataclasses import dataclass

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Fixtures with types that kernels take. Those with matrix products take 16 bits alone on a GPU.
TYPES = {"rows": (torch.bfloat16, torch.float32), "products": (torch.bfloat16, torch.float16)}


@dataclass(frozen=True)
class Place:
    """A device, and how large things may be there."""

    device: str

    @property
    def is_gpu(self):
        return self.device == "cuda"

    def size(self, large, small):
        """``large`` on a GPU, ``small`` in the interpreter."""
        return large if self.is_gpu else small

    def draw(self, *shape, dtype=torch.float32):
        return torch.randn(shape, device=self.device).to(dtype)

    def uniform(self, *shape, dtype=torch.float32):
        return torch.rand(shape, device=self.device).to(dtype)


def pytest_generate_tests(metafunc):
    for name, on_a_gpu in TYPES.items():
        if name in metafunc.fixturenames:
            types = (torch.float32,) if INTERPRETED else on_a_gpu
            metafunc.parametrize(name, types, ids=lambda x: str(x).removeprefix("torch."))


@pytest.fixture
def place():
    """Every buffer is full of NaN before something is written to it."""
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pytest.importorskip("triton")
    if INTERPRETED:
        import interpreted

        interpreted.patch_the_language_once()
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield Place("cpu" if INTERPRETED else "cuda")
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def gpu(place):
    """Of tests whose bodies run elsewhere on a CPU."""
    if not place.is_gpu:
        pytest.skip("interpreted by tests/integration/test_fla_interpreted.py")
    return place
