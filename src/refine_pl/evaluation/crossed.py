"""Intervals of paired differences over two things at once: documents and seeds.

Method: both are drawn with replacement, each with the number that there is, and the interval is the
percentile bootstrap of the mean over the drawn ones. With one seed documents alone are drawn. Two
or three seeds show little of what seeds do: the differences of each are worth a look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refine_pl.errors import DataError

_BLOCK = 1_000  # resamples at a time


@dataclass(frozen=True, slots=True)
class CrossedDifference:
    """``difference = mean_a - mean_b`` over the same documents and seeds, with its interval."""

    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    num_documents: int


def crossed_difference(
    a: Sequence[Mapping[str, float]],
    b: Sequence[Mapping[str, float]],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> CrossedDifference:
    """How much higher ``a`` is than ``b``.

    Args:
        a: for each seed, a number by document.
        b: the same seeds and documents.
        level: share of the resampled differences inside the interval.
        resamples: how often seeds and documents are drawn.
        seed: of the draws.

    Raises:
        DataError: seeds or documents differ, or there are none.
    """
    documents = sorted(a[0]) if a else []
    if not documents or len(a) != len(b) or any(set(m) != set(documents) for m in (*a, *b)):
        raise DataError(
            "the runs were not measured on the same documents",
            allowed="the same held-out documents in every arm and seed",
            way_out="the same data.init_args for all: split_seed, num_validation_documents, "
            "val_corpus, val_crops and sequence_length",
        )
    here, there = (np.array([[m[d] for d in documents] for m in some]) for some in (a, b))
    difference = here - there  # [seeds, documents]
    means = _resampled(difference, resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return CrossedDifference(
        float(here.mean()),
        float(there.mean()),
        float(difference.mean()),
        float(low),
        float(high),
        tuple(difference.mean(1).tolist()),
        len(documents),
    )


def _resampled(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means ``[resamples]`` over drawn rows and columns of ``values``."""
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, _BLOCK):
        size = min(_BLOCK, resamples - start)
        shares = [
            generator.multinomial(n, np.full(n, 1 / n), size) / n for n in values.shape
        ]  # how often each was drawn
        means.append(((shares[0] @ values) * shares[1]).sum(1))
    return np.concatenate(means)
