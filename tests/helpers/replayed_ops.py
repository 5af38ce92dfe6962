"""A stand-in for CUDA graphs on a CPU: operations are recorded with their tensors, and run again.

As with a graph, tensors keep their places: a replay reads what lies there and writes to the same
results, and every Python value is that of the recording. The host may not read a number.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from watched_ops import tensors

_READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}


class ReplayedOps:
    """A ``Recorder``."""

    device_type = "cpu"

    def __init__(self, device):
        self.calls, self.replays = [], 0

    def warm_up(self, work):
        return work()

    def record(self, work):
        with _Recording(self.calls):
            made = work()
        for result in made:
            result.fill_(7)  # a recorded operation has not run yet
        return made

    def replay(self):
        self.replays += 1
        with torch.autocast("cpu", enabled=False):  # what it casts was recorded as casts
            self._run()

    def _run(self):
        for func, args, kwargs, results in self.calls:
            again = tensors(func(*args, **kwargs))
            for place, value in zip(results, again, strict=True):
                if place is not None:
                    place.copy_(value)


class _Recording(TorchDispatchMode):
    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.name.partition("::")[2] in _READS:
            raise RuntimeError(f"the host reads a number while it is recorded: {func}")
        made = func(*args, **kwargs)
        given = {x.untyped_storage()._cdata for x in tensors((args, kwargs))}
        # A view of something that keeps its place is up to date.
        results = [None if x.untyped_storage()._cdata in given else x for x in tensors(made)]
        self.calls.append((func, args, kwargs, results))
        return made


class DecodedAgain:
    """A ``Recorder`` that decodes the inputs of each draw, as they are given to a recording."""

    device_type = "cpu"

    def __init__(self, device):
        self.replays = 0

    def warm_up(self, work):
        return work()

    def record(self, work):
        self.work, self.made = work, work()
        return self.made

    def replay(self):
        self.replays += 1
        for place, value in zip(self.made, self.work(), strict=True):
            place.copy_(value)
