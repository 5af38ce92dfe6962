"""Several corpora in one, with weights: how many sequences of an epoch come from each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse.typing import PositiveFloat

from refine_pl.data.cache_files import digest_of
from refine_pl.data.corpora import Corpus
from refine_pl.data.sequences import Numbers
from refine_pl.errors import ConfigError, did_you_mean
from refine_pl.randomness import stream_seed


@dataclass
class Mixture(Corpus):
    """The documents of several corpora, named ``corpus/document``.

    Without ``weights`` an epoch holds all of them. With weights, that share of the sequences of an
    epoch (of its packs, where they are packed) comes from each corpus. What an epoch leaves of a
    corpus is read in the next ones, and a corpus is read again, in another order, when all of it
    was read.

    Args:
        corpora: by name.
        weights: of every corpus, by name; their sum does not matter.
        epoch: with weights, an epoch ends before any corpus is read a second time (``shortest``),
            or when every corpus was read once (``longest``), smaller ones several times.

    Raises:
        ConfigError: a corpus without a weight, or a weight of none; or a name with a slash.
    """

    corpora: dict[str, Corpus]
    weights: dict[str, PositiveFloat] | None = None
    epoch: Literal["shortest", "longest"] = "shortest"

    def __post_init__(self) -> None:
        self.corpora = dict(self.corpora)
        slashed = next((name for name in self.corpora if "/" in name or not name), None)
        if not self.corpora or slashed is not None:
            raise ConfigError(
                "a mixture has no corpora" if slashed is None else f"a corpus is named {slashed!r}",
                where="corpora of Mixture",
                allowed="one or more by names without a slash",
            )
        for name in set(self.weights or self.corpora) ^ set(self.corpora):
            missing = name in self.corpora
            raise ConfigError(
                f"the corpus {name!r} has no weight" if missing else f"{name!r} is not a corpus",
                where="weights of Mixture",
                allowed=f"a positive number for each of {', '.join(self.corpora)}",
                way_out=None if missing else did_you_mean(name, self.corpora),
            )

    @property
    def label(self) -> str:
        """The names, and what each of them is."""
        parts = (f"{name}: {corpus.label}" for name, corpus in self.corpora.items())
        return f"Mixture of {', '.join(parts)}"

    def read(self) -> Iterator[tuple[str, str]]:
        """Yield the documents of one corpus after the other."""
        for name, corpus in self.corpora.items():
            for document, text in corpus.documents():
                yield f"{name}/{document}", text
            self.skipped_rows += corpus.skipped_rows
            self.first_skipped = self.first_skipped or corpus.first_skipped

    def content_hash(self, memo_dir: Path | None = None) -> str:
        """A digest of those of the corpora and of their names; weights change no document."""
        return digest_of([(n, c.content_hash(memo_dir)) for n, c in self.corpora.items()])

    def part_of(self, document: str) -> int:
        """Which corpus a document is from: its place among the names."""
        return list(self.corpora).index(document.partition("/")[0])


class MixedOrder:
    """The rows of every epoch, mixed by weights.

    Every corpus has an endless order of its own, one random pass after the other. An epoch takes
    the next rows of each, a fixed number, and shuffles them. So it depends on the seed and the
    epoch alone.

    Args:
        parts: ``[N]`` which corpus each row is of.
        mixture: names, weights, and how long an epoch is.
        batch_size: an epoch is whole batches of so many rows.
        seed: of the orders.

    Raises:
        ConfigError: a corpus has no row, or the epoch no batch.
    """

    def __init__(self, parts: Numbers, mixture: Mixture, batch_size: int, seed: int) -> None:
        assert mixture.weights is not None
        self.seed = seed
        names = list(mixture.corpora)
        self.members = [np.flatnonzero(parts == part) for part in range(len(names))]
        sizes = np.array([len(rows) for rows in self.members])
        weights = np.array([mixture.weights[name] for name in names], dtype=np.float64)
        if not sizes.all():
            raise ConfigError(
                f"no document of the corpus {names[int(sizes.argmin())]!r} is left for training",
                where="corpora of Mixture",
                way_out="lower min_tokens or num_validation_documents, or leave the corpus out",
            )
        weights /= weights.sum()
        reach = sizes / weights
        rows = int(reach.min() + 1e-9 if mixture.epoch == "shortest" else np.ceil(reach.max()))
        rows -= rows % batch_size
        if not rows:
            raise ConfigError(
                f"batch_size {batch_size:,} is more than the {int(reach.min()):,} rows of an epoch",
                where="weights of Mixture: an epoch ends before a corpus is read a second time",
                way_out="epoch: longest, a smaller batch_size, or other weights",
            )
        self.quotas = _whole(weights * rows)
        if not self.quotas.all():
            raise ConfigError(
                f"the weight of {names[int(self.quotas.argmin())]!r} is too small: an epoch of "
                f"{rows:,} rows has none of it",
                where="weights of Mixture",
                way_out="epoch: longest, a larger weight, or leave the corpus out",
            )

    def __len__(self) -> int:
        return int(self.quotas.sum())

    def __call__(self, epoch: int) -> Sequence[int]:
        """The rows of an epoch, in their order."""
        taken = [self._take(part, epoch) for part in range(len(self.members))]
        order = np.concatenate(taken)
        rows: list[int] = _random(self.seed, epoch, "order").permutation(order).tolist()
        return rows

    def _take(self, part: int, epoch: int) -> Numbers:
        members, quota = self.members[part], int(self.quotas[part])
        first, stop = epoch * quota, (epoch + 1) * quota
        passes = range(first // len(members), -(-stop // len(members)))
        rows = [_random(self.seed, part, p, "pass").permutation(members) for p in passes]
        start = first - passes.start * len(members)
        found: Numbers = np.concatenate([members[:0], *rows])[start : start + quota]
        return found


def _whole(shares: np.ndarray) -> Numbers:
    """Whole numbers with the same sum, each within one of its share: by largest remainders."""
    whole = np.floor(shares + 1e-9).astype(np.int64)
    rest = round(float(shares.sum())) - int(whole.sum())
    for part in np.argsort(whole - shares, kind="stable")[:rest]:
        whole[part] += 1
    return whole


def _random(*names: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(stream_seed(*names)))
