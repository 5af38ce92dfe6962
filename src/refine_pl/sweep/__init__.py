"""Overlays x seeds: many runs of one recipe, one after the other, each in a process of its own."""
