"""How rollouts are drawn, and read again in the update."""

from refine_pl.rollouts.base import RolloutGenerator
from refine_pl.rollouts.forked import Forked
from refine_pl.rollouts.recompute import Recompute

__all__ = ["Forked", "Recompute", "RolloutGenerator"]
