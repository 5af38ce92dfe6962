"""A GPU that is not there: fake CUDA tensors with autograd and autocast, on any build of torch.

Fake tensors have shapes, types and a device, and no numbers. Autograd asks two objects inside of
torch about every device: the device's guard, and the hooks of CUDA. A build without CUDA has no
guard and empty hooks; here they get what a machine with one GPU would answer, through ctypes: no
compiler is needed. That stays so until the process ends: it belongs in one of its own, which
``interpreted.run`` starts. A build with CUDA on a machine without a GPU takes the same way.
"""

import ctypes
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import torch
from torch._subclasses import fake_tensor
from torch.nn import functional

CAPABILITY, NAME, MEMORY = (9, 0), "NVIDIA H100 80GB HBM3", 80 * 2**30
_CUDA = 1  # its number among torch's types of devices
_kept = []  # what C++ points to


def pretend():
    """Give torch a GPU without numbers. The backward pass runs on the calling thread.

    Before anything of this project is imported.
    """
    if torch.cuda.is_available():
        raise RuntimeError("there is a GPU: hide it with CUDA_VISIBLE_DEVICES=")
    _give_a_guard()
    _give_hooks()
    _answer_in_python()
    functional.scaled_dot_product_attention = _attention(functional.scaled_dot_product_attention)
    torch.autograd.set_multithreading_enabled(False)
    assert str(torch.accelerator.current_accelerator(check_available=True)) == "cuda"


def _library(name):
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))


def _function(answer):
    made = ctypes.CFUNCTYPE(ctypes.c_int8, ctypes.c_void_p)(lambda _: answer)
    _kept.append(made)
    return ctypes.cast(made, ctypes.c_void_p).value


def _give_a_guard():
    """Torch puts a guard that does nothing in the place of one that says it has no devices."""
    name = "_ZN3c104impl26device_guard_impl_registryE"
    registry = (ctypes.c_void_p * (_CUDA + 1)).in_dll(_library("libc10.so"), name)
    if registry[_CUDA] is None:
        table = (ctypes.c_void_p * 64)(*[_function(0)] * 64)  # to every question: none
        empty = ctypes.c_void_p(ctypes.addressof(table))
        _kept.extend((table, empty))
        registry[_CUDA] = ctypes.addressof(empty)
    before = registry[_CUDA]
    torch._C._ensureCUDADeviceGuardSet()
    assert registry[_CUDA] != before, "torch has put no guard there"


def _give_hooks():
    """Answer the first questions of the hooks: whether it is there, and which device is current."""
    get = _library("libtorch_cpu.so")._ZN2at6detail12getCUDAHooksEv
    get.restype = ctypes.c_void_p
    hooks = ctypes.c_void_p.from_address(get())
    size, head = 64, 2  # an offset and a type come before a table's first function
    whole = ctypes.string_at(hooks.value - 8 * head, 8 * (size + head))
    table = (ctypes.c_void_p * (size + head)).from_buffer_copy(whole)
    # 0 and 1 destroy it; 2 is it built, 3 available, 4 in use, 5 begin, 6 how many, 7 take one.
    for slot in range(2, 8):
        table[slot + head] = _function(1)
    for slot in range(8, 11):  # the current device, and to exchange it
        table[slot + head] = _function(0)
    _kept.append(table)
    hooks.value = ctypes.addressof(table) + 8 * head


def _answer_in_python():
    properties = SimpleNamespace(
        name=NAME, major=CAPABILITY[0], minor=CAPABILITY[1], total_memory=MEMORY,
        multi_processor_count=132, max_threads_per_multi_processor=2048, warp_size=32,
        shared_memory_per_block_optin=227 * 1024,
    )  # fmt: skip
    answers = {
        "is_available": True, "is_initialized": True, "is_bf16_supported": True,
        "current_device": 0, "device_count": 1, "_exchange_device": 0,
        "_maybe_exchange_device": 0, "get_device_capability": CAPABILITY,
        "get_device_name": NAME, "get_device_properties": properties, "synchronize": None,
        "_lazy_init": None, "set_device": None, "mem_get_info": (MEMORY, MEMORY),
        "is_current_stream_capturing": False,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    fake_tensor.init_gpu_context = lambda *_: None  # it would make a tensor, for real
    torch.cuda.device = lambda *_: nullcontext()
    torch.cuda.current_stream = lambda *_: SimpleNamespace(cuda_stream=0)


def _attention(plain):
    """On CUDA one of the fused kernels; torch chooses among them in code that CUDA builds have."""

    def attention(
        q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
    ):  # fmt: skip
        shared = {"enable_gqa": True} if enable_gqa else {}
        if q.device.type != "cuda":
            return plain(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, **shared)
        assert not dropout_p
        if shared:  # only one kernel takes heads that are shared, and no mask with them
            assert attn_mask is None
            assert q.dtype == k.dtype == v.dtype == torch.bfloat16
            fused = torch.ops.aten._scaled_dot_product_flash_attention
            return fused(q, k, v, 0.0, is_causal, scale=scale)[0]
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            zero = torch.zeros((), dtype=q.dtype, device=q.device)
            attn_mask = torch.where(attn_mask, zero, -torch.inf)
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*q.shape[:2], *attn_mask.shape[-2:])
        fused = torch.ops.aten._scaled_dot_product_efficient_attention
        return fused(q, k, v, attn_mask, torch.is_grad_enabled(), 0.0, is_causal, scale=scale)[0]

    return attention
