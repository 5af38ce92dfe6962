"""Random numbers that belong to a row, not to a batch.

Every draw of the algorithm (positions, rollout tokens) comes from a stream that is named by
``(seed, update, row)``. Hence the same row draws the same numbers alone, in a micro-batch, in a
padded batch, on another rank, and after a resume, and nothing needs to be saved to repeat it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def stream_seed(*names: int | str) -> int:
    """A 63-bit seed that depends on every one of ``names`` and on their order."""
    digest = hashlib.blake2b(repr(names).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


class RowRandom:
    """One independent stream of random numbers for each row of a batch.

    Args:
        seed: seed of the run.
        update: what the draw belongs to, usually the iteration.
        rows: one number per row that tells it from every other row of the same update on all ranks.
        purpose: separates streams of the same row, for example ``"train"`` and ``"validation"``.
    """

    def __init__(self, seed: int, update: int, rows: Sequence[int], purpose: str = "train") -> None:
        self._generators = []
        for row in rows:
            generator = torch.Generator()  # on the CPU, so that every device draws the same numbers
            generator.manual_seed(stream_seed(seed, update, int(row), purpose))
            self._generators.append(generator)

    def __len__(self) -> int:
        return len(self._generators)

    def rand(self, *size: int) -> Tensor:
        """Uniform numbers in [0, 1): float64 ``[B, *size]`` on the CPU, the next of each row."""
        return torch.stack(
            [torch.rand(size, generator=g, dtype=torch.float64) for g in self._generators]
        )
