"""flash-linear-attention without a GPU: its Triton kernels in Triton's interpreter, on the CPU.

The interpreter must be chosen before triton is imported, and what is changed here stays changed:
both belong in a process of their own, which ``interpreted.run`` starts and ``prepare`` sets up. 16
bits are of no use there: products of bfloat16 come out wrong.
"""

import ast
import importlib
import inspect
import os

import torch
from interpreted import patch_the_language_once


def prepare():
    """Make fla importable, and its kernels run, in this process."""
    assert os.environ.get("TRITON_INTERPRET") == "1", "start this process with run()"
    torch.set_num_threads(1)
    _take_the_first_configuration()
    _count_loops_in_tensors()
    patch_the_language_once()
    _allow_float32()
    _allow_the_cpu()
    _stand_in_for_flash_attention()


def _take_the_first_configuration():
    """Choosing one would time all of them on a device; they differ in nothing but speed."""
    from triton.runtime.autotuner import Autotuner

    def run_first(self, *arguments, **options):
        return self.fn.run(*arguments, **options, **self.configs[0].all_kwargs())

    Autotuner.run = run_first


def _count_loops_in_tensors():
    """A kernel's ``range`` gives tensors when it is compiled: fla calls ``.to(...)`` on them."""
    from triton.runtime import interpreter

    def number(bound):
        bound = getattr(bound, "value", bound)  # of a constexpr
        return int(bound.handle.data.item()) if hasattr(bound, "handle") else int(bound)

    def tensor_range(*bounds):
        return map(interpreter._implicit_cvt, range(*map(number, bounds)))

    def visit_for(self, node):
        node = self.generic_visit(node)
        call = node.iter
        if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "range":
            call.func.id = "_tensor_range"
        return node

    interpreter._tensor_range = tensor_range  # kernels see the interpreter's global names
    interpreter.ASTTransformer.visit_For = visit_for


def _allow_float32():
    """DeltaNet's chunk kernels work in float32 as well: one line in front of them refuses it."""
    chunk = importlib.import_module("fla.ops.delta_rule.chunk")
    source = inspect.getsource(chunk.chunk_delta_rule)
    refusal = "assert q.dtype != torch.float32"
    assert refusal in source
    exec(source.replace(refusal, "assert True"), vars(chunk))
    for name in ("fla.ops.delta_rule", "fla.layers.delta_net"):
        importlib.import_module(name).chunk_delta_rule = chunk.chunk_delta_rule


def _allow_the_cpu():
    """Our own choice of kernels knows nothing of the interpreter."""
    from refine_kernels.delta_rule import interface

    interface.choose = lambda backend, *_: "fla" if backend == "fla" else "torch"


def _stand_in_for_flash_attention():
    """Its layers of softmax attention call a package that only a GPU can have."""
    import fla.layers.attn
    from torch.nn.functional import scaled_dot_product_attention

    def attend(q, k, v, causal, window_size):
        assert causal
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        time = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
        distance = time - torch.arange(k.shape[2])
        mask = (distance >= 0) & (distance <= (window_size[0] if window_size[0] >= 0 else 2**40))
        output = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return output.transpose(1, 2)

    fla.layers.attn.flash_attn_func = attend
