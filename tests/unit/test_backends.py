"""Which implementation of the delta rule runs on which machine, and what is said of the others."""

import pytest
import torch

from refine_kernels import backends

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """A GPU of some capability, with some Triton; kernels of other packages are installed."""

    def make(capability=(9, 0), triton="3.7.0", missing=()):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(backends, "version", lambda name: triton)
        monkeypatch.setattr(
            backends.importlib.util, "find_spec", lambda name: None if name in missing else name
        )

    return make


def choose(backend="auto", device=CUDA, dtype=torch.bfloat16, width=128, decay=True):
    return backends.choose(backend, device, dtype, width, decay)


def test_auto_takes_what_is_known_to_be_right(machine):
    machine()
    assert choose() == "fla"
    assert choose(dtype=torch.float32) == "torch"
    assert choose(device=CPU) == "torch"
    machine(missing=("fla",))
    assert choose() == "triton"
    assert choose(width=512) == "torch"  # too wide for our kernels
    machine(missing=("triton",))
    assert choose() == "torch"
    machine(capability=(7, 5), missing=("fla",))
    assert choose() == "torch"


@pytest.mark.parametrize(
    ("triton", "wrong"),
    [("3.3.1", False), ("3.4.0", True), ("3.6.0", True), ("3.7.0", True), ("3.7.1", False)],
)
def test_fla_with_decay_is_not_taken_where_it_would_be_wrong(machine, triton, wrong):
    machine(triton=triton, missing=("tilelang",))
    assert choose() == ("triton" if wrong else "fla")
    assert choose(width=512) == ("torch" if wrong else "fla")
    assert choose(decay=False) == "fla"
    rows = {row.implementation: row for row in backends.report() if row.op == "delta_rule"}
    assert rows["triton"].chosen == wrong
    assert rows["fla"].chosen
    assert ("wrongly on Hopper" in rows["fla"].reason) == wrong
    if wrong:
        with pytest.raises(ValueError, match=f"Triton {triton} compiles its backward pass wrongly"):
            choose("fla")
    machine(triton=triton)  # tilelang does that pass in another way
    assert choose() == "fla"
    machine(capability=(8, 0), triton=triton, missing=("tilelang",))
    assert choose() == "fla"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"device": CPU}, "the tensors are on cpu"),
        ({"dtype": torch.float32}, "bfloat16 or float16, not torch.float32"),
        ({"width": 512}, "keys of width 256 at most, not 512"),
    ],
)
def test_our_kernels_asked_for_by_name(machine, options, reason):
    machine()
    assert choose("triton") == "triton"
    with pytest.raises(ValueError, match=f"backend 'triton' cannot run: .*{reason}"):
        choose("triton", **options)


def test_an_old_gpu(machine):
    machine(capability=(7, 5))
    with pytest.raises(ValueError, match=r"compute capability 7\.5"):
        choose("triton")
