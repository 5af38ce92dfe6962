"""Every operation on the pretended GPU, and what a real one would have to do for it.

Shapes and types alone decide what is counted here: operations, floating-point operations, copies,
waits of the host, and bytes that live. Norms and activations are counted as the several operations
that torch's plain versions of them are: an upper bound.
"""

import sys
import weakref
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from refine_pl.benchmark.peak import PRODUCT_FORMULAS

# The size of what they return depends on numbers: the host waits to read it.
_DYNAMIC = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}
_COPIES = {"_to_copy", "copy_"}
_KNOWN = (torch.int64, torch.int32, torch.bool, torch.float64)
_MOST_KNOWN = 2**20  # elements
_PACKAGES = ("refine_pl", "refine_kernels")
_DEVICE = torch.ops.prim.device.default


@dataclass
class Found:
    """What was seen while it was watched. Places are functions of this project."""

    ops: int = 0  # what starts something on the GPU: no views
    places: Counter = field(default_factory=Counter)  # of those
    syncs: Counter = field(default_factory=Counter)  # by place, waits of the host
    float32: Counter = field(default_factory=Counter)  # by place, operations in float32 products
    flop: int = 0  # in all products
    peak_bytes: int = 0  # beside what lived before


def place():
    """The innermost function of this project: ``training.updater.Updater.refine``."""
    frame = sys._getframe(2)
    while frame is not None:
        package, _, module = frame.f_globals.get("__name__", "").partition(".")
        if package in _PACKAGES:
            return f"{module}.{frame.f_code.co_qualname}"
        frame = frame.f_back
    return "elsewhere"


def is_cuda(x):
    if isinstance(x, FakeTensor):  # whose ``device`` is slow
        return x.fake_device.type == "cuda"
    return isinstance(x, Tensor) and x.device.type == "cuda"


def tensors(tree):
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, list | tuple):
        return []
    return [x for each in tree for x in tensors(each)]


def mapped(function, tree):
    """The same with each tensor replaced."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {k: mapped(function, x) for k, x in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(mapped(function, x) for x in tree)
    return tree


class Watch(TorchDispatchMode):
    """Runs CUDA operations on fake tensors, and those on CPU tensors as ever.

    The numbers of small integer tensors on CUDA are computed beside them, because the code reads
    them back (and a wait is noted). What it reads and nobody knows is true, one, or the integer 0;
    and no number is NaN or infinite.
    """

    def __init__(self):
        super().__init__()
        self.found = Found()
        self._fake = FakeTensorMode()
        self._numbers = WeakIdKeyDictionary()
        self._pinned = WeakIdKeyDictionary()
        self._storages = {}
        self._live = 0
        self._before = 0

    def start(self):
        """Count from here on."""
        self.found, self._before = Found(), self._live
        return self.found

    def __enter__(self):
        # Tensors of Python numbers are made on the CPU and copied from there, where it is seen.
        torch._C._set_only_lift_cpu_tensors(True)
        self._tolist, FakeTensor.tolist = FakeTensor.tolist, lambda x: self._as_list(x)
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(False)
        FakeTensor.tolist = self._tolist

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is _DEVICE:
            return args[0].fake_device
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        given = tensors((args, kwargs))
        device = kwargs.get("device")
        to_cuda = device is not None and torch.device(device).type == "cuda"
        if to_cuda or any(map(is_cuda, given)):
            return self._on_cuda(func, name, args, kwargs, given, to_cuda)
        if name == "_pin_memory":
            pinned = args[0].clone()
            self._pinned[pinned] = True
            return pinned
        if name == "is_pinned":
            return args[0] in self._pinned
        return func(*args, **kwargs)

    def _on_cuda(self, func, name, args, kwargs, given, to_cuda):
        if name == "_local_scalar_dense":
            self.found.syncs[place()] += 1
            return self._read(args[0]).item()
        if name in _COPIES:
            if self._waits(name, args, kwargs):
                self.found.syncs[place()] += 1
            if kwargs.get("device") is not None and not to_cuda:
                return func(self._read(args[0]), **kwargs)
        elif any(not is_cuda(x) and x.ndim for x in given):
            raise AssertionError(f"a CPU tensor enters {func} on CUDA in {place()}")
        elif name in _DYNAMIC or _by_mask(name, args):
            self.found.syncs[place()] += 1
            return self._sized(func, args, kwargs)
        if not func.is_view:
            self.found.ops += 1
            self.found.places[place()] += 1
        with self._fake:
            made = func(*mapped(_as_fake, args), **mapped(_as_fake, kwargs))
        if func.overloadpacket in _FLOP:
            self._product(func, args, kwargs, made)
        self._remember(func, args, kwargs, given, made)
        self._count(made)
        return made

    def _as_list(self, x):
        """Fake tensors would read one number after the other; a real one is read at once."""
        self.found.syncs[place()] += 1
        return self._read(x).tolist()

    def _waits(self, name, args, kwargs):
        """Whether a copy crosses between host and GPU, and the host waits until it is done."""
        if name == "copy_":
            to, source = args[0].device.type, args[1]
            quick = args[2] if len(args) > 2 else kwargs.get("non_blocking")
        else:
            source, quick = args[0], kwargs.get("non_blocking")
            device = kwargs.get("device")
            to = source.device.type if device is None else torch.device(device).type
        if source.device.type == to:
            return False
        return not (quick and (is_cuda(source) or source in self._pinned))

    def _read(self, x):
        """Its numbers, on the CPU."""
        if not is_cuda(x):
            return x
        known = self._numbers.get(x)
        if known is not None:
            return known
        return torch.full(x.shape, int(x.is_floating_point() or x.dtype == torch.bool)).to(x.dtype)

    def _sized(self, func, args, kwargs):
        """An operation whose result is as long as numbers say."""
        made = func(*mapped(self._read, args), **mapped(self._read, kwargs))

        def on_cuda(x):
            with self._fake:
                moved = torch.empty(x.shape, dtype=x.dtype, device="cuda")
            self._numbers[moved] = x
            return moved

        made = mapped(on_cuda, made)
        self._count(made)
        return made

    def _remember(self, func, args, kwargs, given, made):
        """Compute the numbers of a small result, where those that it is made of are known."""
        results = [x for x in tensors(made) if is_cuda(x)]
        name = func._schema.name.partition("::")[2]
        if not all(x.numel() <= _MOST_KNOWN and x.dtype in _KNOWN for x in results):
            return
        if all(not is_cuda(x) or x in self._numbers for x in given) and "rand" not in name:
            real = {k: "cpu" if k == "device" else x for k, x in kwargs.items()}
            values = func(*mapped(self._read, args), **mapped(self._read, real))
            for x, value in zip(tensors(made), tensors(values), strict=True):
                self._numbers[x] = value
        elif name in ("eq", "ne") and given[0].is_floating_point():
            # A number equals itself, and differs from infinity.
            itself = len(given) > 1 and given[0] is given[1]
            self._numbers[made] = torch.full(made.shape, itself == (name == "eq"))
        elif func._schema.is_mutable:
            for x in results:
                self._numbers.pop(x, None)

    def _product(self, func, args, kwargs, made):
        flop = _FLOP[func.overloadpacket](*args, **kwargs, out_val=made)
        self.found.flop += flop
        first = int(func.overloadpacket in _ADDED)
        if any(x.dtype in (torch.float32, torch.float64) for x in args[first : first + 2]):
            self.found.float32[place()] += flop

    def _count(self, made):
        for x in tensors(made):
            storage = x.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._storages or not is_cuda(x):
                continue

            def forget(_, key=key, size=size):
                self._storages.pop(key, None)
                self._live -= size

            self._storages[key] = weakref.ref(storage, forget)
            self._live += size
            above = self._live - self._before
            self.found.peak_bytes = max(self.found.peak_bytes, above)


def _as_fake(x):
    if isinstance(x, FakeTensor):
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)


def _by_mask(name, args):
    """Whether an index is a mask, or a count for each element, which the host reads."""
    if name == "repeat_interleave":
        return isinstance(args[0], Tensor) and len(args) == 1
    if name not in ("index", "index_put", "index_put_"):
        return False
    return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])


aten = torch.ops.aten
_FLOP = dict(flop_registry) | PRODUCT_FORMULAS
_ADDED = (aten.addmm, aten.addmm_, aten.baddbmm, aten.baddbmm_)  # to their first argument
