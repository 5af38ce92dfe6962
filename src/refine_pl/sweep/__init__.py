"""Overlays x seeds: many runs of one recipe, one after the other, each in a process of its own."""

from refine_pl.sweep.index import Index, exclusive
from refine_pl.sweep.loop import Sweep, run_sweep
from refine_pl.sweep.overlays import Overlay, changes, check_effect, find_overlays
from refine_pl.sweep.process import newest_checkpoint
from refine_pl.sweep.table import results_table

__all__ = [
    "Index",
    "Overlay",
    "Sweep",
    "changes",
    "check_effect",
    "exclusive",
    "find_overlays",
    "newest_checkpoint",
    "results_table",
    "run_sweep",
]
