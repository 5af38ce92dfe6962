"""A warning about rewards that teach nothing."""

from __future__ import annotations

import warnings

FLAT_SHARE, FLAT_ITERATIONS = 0.95, 20


class FlatRewards:
    """Says once that rewards have been equal inside nearly all groups for many iterations."""

    def __init__(self) -> None:
        self._iterations = 0
        self._said = False

    def watch(self, share: float) -> None:
        """Take note of the share of groups with equal rewards in one iteration."""
        self._iterations = self._iterations + 1 if share >= FLAT_SHARE else 0
        if self._iterations < FLAT_ITERATIONS or self._said:
            return
        self._said = True
        warnings.warn(
            f"For {FLAT_ITERATIONS} iterations {share:.0%} of the groups had equal rewards: the "
            "policy loss teaches almost nothing. Try a graded reward (embedding similarity, "
            "log-likelihood), more rollouts per position, or shorter rollouts.",
            stacklevel=2,
        )
