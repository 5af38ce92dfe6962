"""States of LaCT's fast weights that are read before any of them changes: nothing on the host."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from refine_kernels.lact_update.reading import read
from refine_kernels.lact_update.weights import FastTokens, FastWeights, UpdateRule


@dataclass(frozen=True, slots=True)
class UnchangingState:
    """``R = G * N`` rows over ``G`` prefixes, to be read only until a chunk may be full.

    Sizes alone decide what it runs, and the tokens that it reads are not kept.
    """

    weights: FastWeights  # [G, H, ...]
    room: int  # tokens that may still be read
    copies: int = 1  # N

    def select(self, rows: Tensor) -> UnchangingState:
        """The rows ``rows [M]`` int64."""
        weights = self.weights.map(lambda w: w.index_select(0, rows // self.copies))
        return replace(self, weights=weights, copies=1)

    def fork(self, n: int) -> UnchangingState:
        """Every row ``n`` times, sharing its prefix."""
        return replace(self, copies=self.copies * n)

    def read(
        self, q: Tensor, tokens: FastTokens, norms: FastWeights, rule: UpdateRule
    ) -> tuple[Tensor, UnchangingState]:
        """As :meth:`SharedFastState.read`.

        Raises:
            ValueError: more tokens than there is room for.
        """
        length = q.shape[1]
        if length > self.room:
            raise ValueError(f"{length} tokens of a state that may read {self.room} more")
        queries = q.to(self.weights.w0.dtype)
        by_prefix = queries.unflatten(0, (-1, self.copies)).flatten(1, 2)
        output = read([self.weights], by_prefix, by_prefix.shape[1]).reshape(queries.shape)
        return output.to(q.dtype), replace(self, room=self.room - length)
