"""Which implementation of the delta rule runs on which machine, and what is said of the others."""

import pytest
import torch

from refine_kernels import backends
from refine_kernels.delta_rule import SharedState, delta_rule_shared
from refine_kernels.token_stats import token_stats

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """A GPU of some capability, with some Triton; kernels of other packages are installed."""

    def make(capability=(9, 0), triton="3.7.0", missing=()):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(backends, "triton_version", lambda: triton)
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
    ("triton", "capability", "stops"),
    [("3.3.1", (9, 0), True), ("3.3.1", (8, 0), True), ("3.4.0", (9, 0), False)],
)
def test_our_kernels_are_not_taken_where_triton_does_not_compile_them(
    machine, triton, capability, stops
):
    machine(capability, triton, missing=("fla",))
    assert choose() == ("torch" if stops else "triton")
    rows = {row.implementation: row for row in backends.report() if row.op == "delta_rule"}
    assert rows["triton"].chosen != stops
    assert rows["torch"].chosen == stops
    assert ("does not compile all of them" in rows["triton"].reason) == stops
    assert backends.takes_triton("swiglu", "auto", CUDA) != stops
    if stops:
        with pytest.raises(ValueError, match=f"Triton {triton} does not compile all of them"):
            choose("triton")
    machine(capability, triton)
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


def test_kernels_that_auto_takes_wherever_they_can_run(machine, monkeypatch):
    def takes(backend="auto", device=CUDA, unfit=None):
        return backends.takes_triton("swiglu", backend, device, unfit)

    machine()
    assert takes()
    assert takes("triton")
    assert not takes("torch")
    assert not takes(device=CPU)
    assert not takes(unfit="too wide")
    for options, reason in (
        ({"device": CPU}, "the tensors are on cpu"),
        ({"unfit": "wide"}, "wide"),
    ):
        with pytest.raises(ValueError, match=f"swiglu: backend 'triton' cannot run: {reason}"):
            takes("triton", **options)
    with pytest.raises(ValueError, match="swiglu has no backend 'fla'; use auto, torch or triton"):
        takes("fla")
    rows = {(row.op, row.implementation): row for row in backends.report()}
    assert rows["gated_norm", "triton"].chosen
    assert not rows["gated_norm", "torch"].chosen
    monkeypatch.setenv("REFINE_KERNELS", "torch")
    assert not takes()
    assert takes("triton")
    rows = {(row.op, row.implementation): row for row in backends.report()}
    assert not rows["short_conv", "triton"].chosen
    assert rows["short_conv", "triton"].reason == "REFINE_KERNELS=torch"
    monkeypatch.delenv("REFINE_KERNELS")
    machine(capability=(7, 5))
    assert not takes()
    machine(missing=("triton",))
    assert not takes()


def test_products_are_for_16_bits_and_narrow_keys(machine, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert backends.not_for_products(torch.bfloat16) is None
    assert backends.not_for_products(torch.float16, 256) is None
    assert "not torch.float32" in backends.not_for_products(torch.float32)
    assert "at most, not 257" in backends.not_for_products(torch.bfloat16, 257)
    machine()
    chosen = {(row.op, row.implementation): row.chosen for row in backends.report()}
    for op in ("delta_rule_shared", "token_stats"):
        assert chosen[op, "triton"]
        assert not chosen[op, "torch"]


@pytest.mark.parametrize("op", ["delta_rule_shared", "token_stats"])
def test_without_cuda_auto_is_torch_and_triton_is_refused(op):
    calls = {
        "delta_rule_shared": lambda backend: delta_rule_shared(
            *(torch.ones(2, 1, 1, 3),) * 3,
            torch.ones(2, 1, 1),
            None,
            SharedState(torch.ones(1, 1, 3, 3), 2),
            backend=backend,
        )[0],
        "token_stats": lambda backend: (
            token_stats(torch.ones(2, 3), torch.ones(5, 3), entropy=True, backend=backend).entropy
        ),
    }
    assert torch.equal(calls[op]("auto"), calls[op]("torch"))
    with pytest.raises(ValueError, match=f"{op}: backend 'triton' cannot run"):
        calls[op]("triton")


def test_float64_is_not_for_kernels_that_sum_in_float32():
    assert backends.not_for_kernels(torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)) is None
    assert "float64" in backends.not_for_kernels(torch.zeros(1), torch.zeros(1).double())
