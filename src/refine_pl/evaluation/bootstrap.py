"""Intervals of means, and of differences between two runs, by resampling rows.

Method: percentile bootstrap. Of ``n`` rows, ``n`` are drawn with replacement, ``resamples`` times;
the interval goes from the ``(1 - level) / 2`` to the ``(1 + level) / 2`` quantile of the means. It
says how much the mean depends on which rows the test set happens to hold, not on the seed of a
training run, nor on a sampled answer. Scores that are all equal, one row among them, give an
interval without width: the bootstrap knows no spread that it has not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refine_pl.errors import ConfigError, DataError

_BLOCK = 4_000_000  # draws at a time: 32 MB of row numbers
_ZERO = 1e-12  # a resampled difference of this size is rounding

Scores = Sequence[float] | npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its interval, in the unit of the scores."""

    mean: float
    low: float
    high: float
    num_rows: int
    level: float
    resamples: int

    def percent(self) -> Interval:
        """The same times 100, as tables show it."""
        return replace(self, mean=100 * self.mean, low=100 * self.low, high=100 * self.high)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """``difference = mean_a - mean_b`` over the same rows, with its interval."""

    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    share_not_positive: float  # of the resamples in which the difference is 0 or less
    num_rows: int
    level: float
    resamples: int

    def percent(self) -> PairedDifference:
        """Means, difference and interval times 100; the share stays a ratio."""
        names = ("mean_a", "mean_b", "difference", "low", "high")
        return replace(self, **{name: 100 * getattr(self, name) for name in names})


def mean_interval(
    scores: Scores, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean of ``scores`` and its percentile bootstrap interval over rows.

    The order of the scores changes nothing, and the same seed gives the same interval.

    Args:
        scores: ``[n]`` one number per row, n at least 1.
        level: share of the resampled means inside the interval, between 0 and 1.
        resamples: how many test sets are drawn.
        seed: of the draws.

    Raises:
        DataError: no scores, or one that is not finite.
    """
    return average_interval([scores], level=level, resamples=resamples, seed=seed)


def average_interval(
    groups: Sequence[Scores], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean of the groups' means, each group counting alike, and its interval.

    A benchmark's average over its tasks: rows are drawn inside their group, each with draws of its
    own. Arguments and errors are those of :func:`mean_interval`, for each group.
    """
    if not groups:
        raise DataError("there are no groups: an average needs at least one")
    values = [np.sort(_finite(scores, "scores")) for scores in groups]
    means = [_resampled_means(group, resamples, seed + i) for i, group in enumerate(values)]
    low, high = _quantiles(np.mean(means, axis=0), level)
    mean = float(np.mean([group.mean() for group in values]))
    return Interval(mean, low, high, sum(map(len, values)), level, resamples)


def paired_difference(
    a: Mapping[str, float],
    b: Mapping[str, float],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """How much better ``a`` is than ``b`` on the same rows: ``mean(a) - mean(b)``.

    Rows are drawn, not scores: each resample takes both scores of a row, so that what makes a row
    hard for both falls out. The interval is the percentile bootstrap of the mean of the rows'
    differences; ``share_not_positive`` near 0 speaks for ``a``, near 1 against it.

    Args:
        a: score by row id.
        b: score by row id, of the same rows.
        level: share of the resampled differences inside the interval.
        resamples: how many test sets are drawn.
        seed: of the draws.

    Raises:
        DataError: the ids differ, there are none, or a score is not finite.
    """
    if a.keys() != b.keys():
        alone = _shown([key for key in a if key not in b], "only in a")
        alone += _shown([key for key in b if key not in a], "only in b")
        raise DataError(
            "the two runs did not score the same rows: " + ", ".join(alone),
            allowed="the same row ids in both",
            way_out="test both on the same data, and to the end",
        )
    ids = sorted(a)  # the order in which rows come changes no rounding
    here = _finite([a[key] for key in ids], "scores of a")
    there = _finite([b[key] for key in ids], "scores of b")
    differences = here - there
    means = _resampled_means(np.sort(differences), resamples, seed)
    low, high = _quantiles(means, level)
    return PairedDifference(
        float(here.mean()),
        float(there.mean()),
        float(differences.mean()),
        low,
        high,
        float((means <= _ZERO).mean()),
        len(ids),
        level,
        resamples,
    )


def _finite(scores: Scores, what: str) -> npt.NDArray[np.float64]:
    """The scores as an array, checked."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise DataError(f"{what} have the shape {list(values.shape)}", allowed="one per row: [n]")
    if not values.size:
        raise DataError(f"there are no {what}: a mean needs at least one row")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise DataError(
            f"{bad.size} of {values.size} {what} are not finite, the first is "
            f"{values[bad[0]]} at index {bad[0]}",
        )
    return values


def _resampled_means(
    values: npt.NDArray[np.float64], resamples: int, seed: int
) -> npt.NDArray[np.float64]:
    """Means ``[resamples]`` of as many rows as there are, drawn with replacement."""
    if resamples < 1:
        raise ConfigError(f"resamples is {resamples}", allowed="at least 1")
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // values.size)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    draws = (generator.integers(0, values.size, (size, values.size)) for size in sizes)
    return np.concatenate([values[rows].mean(axis=1) for rows in draws])


def _quantiles(means: npt.NDArray[np.float64], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ConfigError(f"level is {level}", allowed="more than 0 and less than 1")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _shown(keys: Sequence[str], where: str) -> list[str]:
    more = ", ..." if len(keys) > 3 else ""
    return [f"{len(keys)} {where} ({', '.join(map(str, keys[:3]))}{more})"] if keys else []
