"""What a sweep left behind: its index and the last numbers of each of its runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refine_pl.report.answers import SCORES, read_scores
from refine_pl.report.files import Fields, read_json
from refine_pl.report.training import SUMMARY, read_validations

INDEX = "sweep.json"
BASE = "base"  # the group of the recipe as it is
SCORE = "score "  # before task and length, in the names of metrics


@dataclass(frozen=True, slots=True)
class Entry:
    """One run of a sweep."""

    overlay: str
    group: str
    seed: int
    folder: Path
    status: str  # done, failed, running or pending
    error: str  # why it failed
    metrics: dict[str, float]  # of the last validation, and mean scores

    @property
    def number(self) -> float | None:
        """The setting, where the overlay is named after one: 5 for rollout_length_5."""
        if self.group == BASE:
            return None
        found = re.search(r"(?:^|[_\-/= ])(\d+(?:\.\d+)?)(?:\.yaml)?$", self.overlay)
        return float(found[1]) if found else None


@dataclass(frozen=True, slots=True)
class Sweep:
    """Runs of the same recipe with different overlays and seeds."""

    base: str  # the recipe's files
    entries: list[Entry]
    changes: dict[tuple[str, str], dict[str, Any]]  # settings by group and overlay


def is_sweep(folder: Path) -> bool:
    """Whether ``folder`` holds a sweep."""
    return (folder / INDEX).is_file()


def read_sweep(folder: Path) -> Sweep:
    """Read the index and the runs that it names.

    Raises:
        DataError: a file is damaged.
    """
    file = folder / INDEX
    index = Fields(read_json(file), str(file))
    entries = [_entry(entry, folder) for entry in index.objects("entries")]
    if not entries:
        raise index.error("the sweep has no entries")
    base = index.values.get("base")
    configs = base.get("configs") if isinstance(base, dict) else base
    changes = {
        (overlay.get("group", str), overlay.get("overlay", str)): overlay.get("changes", dict)
        for overlay in (index.objects("overlays") if "overlays" in index.values else [])
    }
    names = ", ".join(map(str, configs)) if isinstance(configs, list) else str(configs or "")
    return Sweep(names, entries, changes)


def _entry(entry: Fields, sweep: Path) -> Entry:
    folder = sweep / entry.get("run", str)
    status = entry.get("status", str)
    return Entry(
        entry.get("overlay", str),
        entry.get("group", str),
        entry.get("seed", int),
        folder,
        status,
        entry.get("error", str, type(None)) or "",
        last_numbers(folder) if status == "done" else {},
    )


def last_numbers(folder: Path) -> dict[str, float]:
    """The last validation of a run folder, and the scores of evaluations in it or just below it."""
    found: dict[str, float] = {}
    summaries = sorted([*folder.glob(SUMMARY), *folder.glob(f"version_*/{SUMMARY}")])
    if summaries:
        validations = read_validations(summaries[-1])
        found |= validations[-1].metrics if validations else {}
    for scores in sorted([*folder.glob(SCORES), *folder.glob(f"*/{SCORES}")]):
        for result in read_scores(scores).results:
            length = "" if result.length is None else f" {result.length:,}"
            found.setdefault(f"{SCORE}{result.task}{length}", result.mean)
    return found
