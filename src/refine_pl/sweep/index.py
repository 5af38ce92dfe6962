"""``sweep.json``: what a sweep is made of, and how far it has come."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refine_pl.errors import ConfigError
from refine_pl.sweep.overlays import changes, flatten
from refine_pl.training.record_files import read_record
from refine_pl.training.run_folder import SWEEP, SweepIndex

_LOCK = ".lock"
_DIFFERENCES_SHOWN = 5


@contextmanager
def exclusive(folder: Path) -> Iterator[int]:
    """Hold a sweep's folder, which is made if it is not there, against other sweeps.

    Yields:
        A file descriptor. A process that inherits it holds the folder as well, so a run that its
        killed sweep left behind does.

    Raises:
        ConfigError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another sweep works in {folder}, or has left a run behind",
                where="--out",
                way_out="wait for it or end it, or choose another folder",
            ) from None
        yield lock.fileno()


def continued(folder: Path, asked: SweepIndex) -> SweepIndex:
    """The index in ``folder`` with what is asked for added to it; nothing is written.

    Args:
        folder: the sweep's.
        asked: the recipe, the overlays and a new entry for each run. Overlays, seeds and a test may
            be new; everything else must be as it was.

    Raises:
        UserError: the index is damaged or has other settings, or the folder holds something else.
    """
    if not (folder / SWEEP).exists():
        if folder.exists() and any(path.name != _LOCK for path in folder.iterdir()):
            raise ConfigError(
                f"{folder} holds something that is not a sweep",
                where="--out",
                allowed=f"a new folder, or one with a {SWEEP}",
            )
        return asked
    past = read_record(folder / SWEEP, SweepIndex)
    _check_same(folder, past, asked)
    overlays = {o.label: o for o in past.overlays} | {o.label: o for o in asked.overlays}
    entries = {entry.run: entry for entry in past.entries}
    for new in asked.entries:
        entry = entries.setdefault(new.run, new)
        entry.test = entry.test or new.test
    evaluation = asked.evaluation or past.evaluation
    return SweepIndex(asked.base, list(entries.values()), evaluation, list(overlays.values()))


def _check_same(folder: Path, past: SweepIndex, asked: SweepIndex) -> None:
    known = {overlay.label: overlay.changes for overlay in past.overlays}
    compared = [("", past.base.resolved, asked.base.resolved)]
    compared += [
        (f"{overlay.label}: ", known[overlay.label], overlay.changes)
        for overlay in asked.overlays
        if overlay.label in known
    ]
    if past.evaluation and asked.evaluation:
        compared.append(("", {"--eval": past.evaluation}, {"--eval": asked.evaluation}))
    different = [
        f"{prefix}{key}: {_shown(before, key)}, now {_shown(now, key)}"
        for prefix, before, now in compared
        for key in changes(before, json.loads(json.dumps(now)))  # JSON has no tuples
    ]
    if different:
        more = len(different) - _DIFFERENCES_SHOWN
        shown = different[:_DIFFERENCES_SHOWN] + [f"and {more} more"] * (more > 0)
        raise ConfigError(
            f"{folder} holds a sweep with other settings: {'; '.join(shown)}",
            where="--out",
            allowed="the same settings; overlays and seeds may be added",
            way_out="another folder, or the settings of before",
        )


def _shown(values: Mapping[str, Any], key: str) -> str:
    flat = dict(flatten(values))
    text = json.dumps(flat[key]) if key in flat else "not there"
    return text if len(text) <= 80 else text[:80] + " ..."
