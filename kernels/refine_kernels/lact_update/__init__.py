"""LaCT's fast weights: read a chunk, then update."""

from refine_kernels.lact_update.interface import FastOutput, FastTrail, lact_update
from refine_kernels.lact_update.precision import Precision
from refine_kernels.lact_update.shared import SharedFastState
from refine_kernels.lact_update.step import row_norms
from refine_kernels.lact_update.unchanging import UnchangingState
from refine_kernels.lact_update.weights import FastTokens, FastWeights, UpdateRule

__all__ = [
    "FastOutput",
    "FastTokens",
    "FastTrail",
    "FastWeights",
    "Precision",
    "SharedFastState",
    "UnchangingState",
    "UpdateRule",
    "lact_update",
    "row_norms",
]
