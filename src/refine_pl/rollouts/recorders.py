"""What records the operations of a function once, and starts them again without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol, TypeVar

import torch

T = TypeVar("T")


class Recorder(Protocol):
    """Records one function; whatever it reads and returns keeps its place in memory.

    Attributes:
        device_type: where it can record.
    """

    device_type: ClassVar[str]

    def __init__(self, device: torch.device) -> None: ...

    def warm_up(self, work: Callable[[], T]) -> T:
        """Run ``work`` as it is, so that nothing is compiled or tuned while it is recorded."""

    def record(self, work: Callable[[], T]) -> T:
        """Record ``work``: what :meth:`replay` writes to. It holds anything until then."""

    def replay(self) -> None:
        """Start the recorded operations again."""


class CudaRecorder:
    """A CUDA graph: one start from the host for all kernels."""

    device_type: ClassVar[str] = "cuda"

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.graph = torch.cuda.CUDAGraph()

    def warm_up(self, work: Callable[[], T]) -> T:
        """See :class:`Recorder`; in a stream of its own, as the capture will be."""
        with torch.cuda.device(self.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                made = work()
            torch.cuda.synchronize()
        return made

    def record(self, work: Callable[[], T]) -> T:
        """See :class:`Recorder`."""
        # Other threads go on: those that pin memory for the next batch, and those of NCCL.
        own = torch.cuda.graph(self.graph, capture_error_mode="thread_local")
        with torch.cuda.device(self.device), own:
            return work()

    def replay(self) -> None:
        """See :class:`Recorder`."""
        with torch.cuda.device(self.device):
            self.graph.replay()
