"""Position selectors: where rollouts start."""

from refine_pl.selectors.base import Candidates, PositionSelector, segment_bounds, smooth
from refine_pl.selectors.entropy import Entropy
from refine_pl.selectors.even import Even
from refine_pl.selectors.extremum import Extremum
from refine_pl.selectors.fixed import Fixed
from refine_pl.selectors.random import Random

__all__ = [
    "Candidates",
    "Entropy",
    "Even",
    "Extremum",
    "Fixed",
    "PositionSelector",
    "Random",
    "segment_bounds",
    "smooth",
]
