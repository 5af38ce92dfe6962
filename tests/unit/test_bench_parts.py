"""Parts of ``refine-pl bench``: the peak, counted products, and what takes most time.

What a GPU would be asked and would answer is played here: fake tensors and made-up profiles.
"""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import DeviceType
from torch.nn.functional import scaled_dot_product_attention

from refine_pl.benchmark.peak import Peak, Products, measure_peak
from refine_pl.benchmark.slowest import profiled, render_slowest, slowest

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def shapes(*sizes):
    return [torch.randn(size, requires_grad=True) for size in sizes]


def triangle():
    a = torch.eye(5).expand(3, 5, 5)
    torch.linalg.solve_triangular(a, torch.randn(3, 5, 7), upper=False)


def backward():
    a, b = shapes((4, 5), (5, 6))
    (a @ b).sum().backward()


def attention():
    q, k, v = shapes(*[(2, 3, 8, 4)] * 3)
    scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()


def shared_heads():
    q, k, v = (torch.empty(2, heads, 8, 4, device="meta") for heads in (6, 3, 3))
    torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)


PRODUCTS = {
    "two matrices": (lambda: torch.ones(4, 5) @ torch.ones(5, 6), 2 * 4 * 5 * 6),
    "and both ways": (backward, 3 * 2 * 4 * 5 * 6),
    "a batch": (lambda: torch.ones(3, 4, 5) @ torch.ones(3, 5, 6), 3 * 2 * 4 * 5 * 6),
    "added": (lambda: torch.nn.Linear(5, 6)(torch.ones(4, 5)), 2 * 4 * 5 * 6),
    "added in place": (
        lambda: torch.ones(3, 4, 6).baddbmm_(torch.ones(3, 4, 5), torch.ones(3, 5, 6)),
        3 * 2 * 4 * 5 * 6,
    ),
    "written to a buffer": (
        lambda: torch.mm(torch.ones(4, 5), torch.ones(5, 6), out=torch.ones(4, 6)),
        2 * 4 * 5 * 6,
    ),
    "a triangle": (triangle, 3 * 5 * 5 * 7),
    # Two products forward, five backward: scores are computed again.
    "attention": (attention, (2 + 5) * 2 * (2 * 3) * 8 * 8 * 4),
    "keys and values of fewer heads": (shared_heads, 2 * 2 * (2 * 6) * 8 * 8 * 4),
    "nothing that counts": (lambda: torch.ones(4, 5).exp() * 2, 0),
}


@pytest.mark.parametrize(("work", "flop"), PRODUCTS.values(), ids=PRODUCTS)
def test_products_are_counted(work, flop):
    with Products() as found:
        work()
    assert found.flop == flop


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_peak_of_a_cpu_is_of_the_trained_type(dtype):
    peak = measure_peak(CPU, dtype, side=32, repeats=2)
    assert peak.dtype == str(dtype).removeprefix("torch.")
    assert peak.flop_per_s > 0


def test_on_cuda_the_peak_is_of_bfloat16_and_the_device_is_waited_for(monkeypatch):
    waits, products, time = [], [], iter(range(100))
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    monkeypatch.setattr("time.perf_counter", lambda: next(time))

    def multiply(a, b, *, out):
        products.append((a.device.type, *(x.dtype for x in (a, b, out)), a.shape))

    monkeypatch.setattr(torch, "mm", multiply)
    with FakeTensorMode():
        peak = measure_peak(CUDA, torch.float32)
    assert products == [("cuda", *[torch.bfloat16] * 3, (8192, 8192))] * 11
    assert waits == [CUDA] * 22  # before and after each product
    assert peak == Peak(8192, "bfloat16", 2 * 8192**3)
    assert peak.describe() == (
        "peak: a product of 8,192 x 8,192 matrices in bfloat16 reaches 1 TFLOP/s"
    )


def test_shares_of_the_peak():
    peak = Peak(1024, "float32", 50e9)
    assert peak.share(25 * 10**9, 2.0) == 0.25
    assert peak.describe().endswith("reaches 50 GFLOP/s")


def event(key, device, microseconds, count=1, annotation=False):
    """As torch's profiler describes all calls of one name."""
    on_gpu = device == DeviceType.CUDA
    return SimpleNamespace(
        key=key, count=count, device_type=device, is_user_annotation=annotation,
        self_device_time_total=microseconds if on_gpu else 7 * microseconds,
        self_cpu_time_total=0 if on_gpu else microseconds,
    )  # fmt: skip


LONG = "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_nt_align8>"
EVENTS = [
    event("aten::mm", DeviceType.CPU, 50, count=9),
    event(LONG, DeviceType.CUDA, 3000, count=4),
    event("recur", DeviceType.CUDA, 600),
    event("recur", DeviceType.CUDA, 400),
    event("Optimizer.step#AdamW.step", DeviceType.CUDA, 9000, annotation=True),
    event("cudaLaunchKernel", DeviceType.CPU, 150),
    event("never ran", DeviceType.CUDA, 0),
]


def test_kernels_on_cuda():
    found = slowest(EVENTS, CUDA)
    assert [(x.name, x.calls) for x in found] == [(LONG, 4), ("recur", 2)]
    assert [x.seconds for x in found] == pytest.approx([0.003, 0.001])
    assert [x.share for x in found] == [0.75, 0.25]
    table = render_slowest(found)
    assert max(map(len, table.splitlines())) <= 80
    assert "void cutlass" in table
    assert "_nt_align8>" in table
    assert [line.split()[-3:] for line in table.splitlines()[1:]] == [
        ["4", "3.0", "75.0%"],
        ["2", "1.0", "25.0%"],
    ]


def test_operators_on_a_cpu():
    found = slowest(EVENTS, CPU)
    assert [x.name for x in found] == ["cudaLaunchKernel", "aten::mm"]
    assert [x.share for x in found] == [0.75, 0.25]


def test_as_many_as_were_asked_for():
    many = [event(f"kernel {n}", DeviceType.CUDA, n) for n in range(20)]
    assert [x.name for x in slowest(many, CUDA, 3)] == ["kernel 19", "kernel 18", "kernel 17"]


def test_work_is_watched_with_its_backward_pass():
    a, b = shapes((64, 64), (64, 64))
    found = profiled(lambda: (a @ b).exp().sum().backward(), CPU, count=1000)
    calls = {x.name: x.calls for x in found}
    assert calls["aten::mm"] == 3
    assert calls["aten::exp"] == 1
    assert sum(x.share for x in found) == pytest.approx(1)


def test_a_gpu_is_watched_for_its_kernels(monkeypatch):
    asked, waits = [], []

    class Profile:
        def __init__(self, activities):
            asked.extend(activities)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            assert waits == [CUDA]  # or kernels that still run would be missing

        def key_averages(self):
            return EVENTS

    monkeypatch.setattr("refine_pl.benchmark.slowest.profile", Profile)
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    assert [x.name for x in profiled(lambda: None, CUDA)] == [LONG, "recur"]
    assert [x.name for x in asked] == ["CPU", "CUDA"]
