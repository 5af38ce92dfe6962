"""Numbers by document, of runs that were measured alike."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from refine_pl.comparison.records import Difference, Sample
from refine_pl.errors import DataError
from refine_pl.evaluation.crossed import crossed_difference
from refine_pl.training.metrics import closing_names
from refine_pl.training.record_files import read_records
from refine_pl.training.run_folder import HELD_OUT, HeldOut

LEVEL = 0.95
ByDocument = dict[str, dict[str, float]]  # numbers by name, then by document


def held_out(run: Path, last: bool = True) -> list[HeldOut]:
    """What the last validation of a run measured, or the first one, row by row.

    Raises:
        DataError: the run has none, or the file is damaged.
    """
    file = run / HELD_OUT
    records = read_records(file, HeldOut)[0] if file.is_file() else []
    if not records:
        raise DataError(
            f"{run} has no held-out numbers",
            where=str(file),
            allowed="a run with validation documents, and with the key summary on",
        )
    iterations = [record.iteration for record in records]
    wanted = max(iterations) if last else min(iterations)
    # A validation that was made twice, by a resumed run, counts once.
    rows = {record.row: record for record in records if record.iteration == wanted}
    return [rows[row] for row in sorted(rows)]


def by_document(records: Iterable[HeldOut]) -> ByDocument:
    """Means over the sequences of each document."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for name, value in record.values.items():
            found[name][record.document].append(value)
    return {
        name: {document: statistics.fmean(values) for document, values in documents.items()}
        for name, documents in found.items()
    }


def differences(a: Sequence[ByDocument], b: Sequence[ByDocument]) -> list[Difference]:
    """Every measure that both have, ``a - b``, in the order of the closing table.

    Rewards are left out: those of two arms need not be the same.

    Args:
        a: numbers of each seed.
        b: of the same seeds.

    Raises:
        DataError: they were not measured on the same documents.
    """
    shared = set.intersection(*(set(numbers) for numbers in (*a, *b)))
    names = [name for name in closing_names(shared) if not name.startswith("val/reward")]
    found = []
    for name in names:
        pair = crossed_difference([n[name] for n in a], [n[name] for n in b], level=LEVEL)
        found.append(
            Difference(
                name,
                pair.mean_a,
                pair.mean_b,
                pair.difference,
                pair.low,
                pair.high,
                list(pair.by_seed),
            )
        )
    return found


def sample(arm: Path, base: Path) -> Sample | None:
    """A rollout of the start, of an arm and of the baseline, from the same place.

    It is that of the document in the middle of the list: not chosen by what it shows.
    """
    before, after, other = (
        {record.row: record for record in held_out(run, last)}
        for run, last in ((arm, False), (arm, True), (base, True))
    )
    rows = [row for row in sorted(after) if after[row].target and row in before and row in other]
    if not rows:
        return None
    row = rows[len(rows) // 2]
    here = after[row]
    return Sample(
        here.document,
        here.prefix,
        here.target,
        before[row].rollout,
        here.rollout,
        other[row].rollout,
    )
