"""``sweep.json``: what a sweep is made of, and how far it has come."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refine_pl.errors import ConfigError
from refine_pl.sweep.overlays import Overlay, changes, flatten
from refine_pl.training.record_files import read_record, write_json
from refine_pl.training.run_folder import (
    SWEEP,
    SweepBase,
    SweepEntry,
    SweepIndex,
    SweepOverlay,
    SweepTest,
)

_LOCK = ".lock"
_DIFFERENCES_SHOWN = 5

Variants = Sequence[tuple[Overlay, Mapping[str, Any]]]  # overlays, with what each one changes


@contextmanager
def exclusive(folder: Path) -> Iterator[int]:
    """Hold a sweep's folder against other sweeps.

    Args:
        folder: is made if it is not there.

    Yields:
        A file descriptor. A process that inherits it holds the folder as well, so a run that its
        killed sweep left behind does.

    Raises:
        ConfigError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another sweep works in {folder}, or has left a run behind",
                where="--out",
                way_out="wait for it or end it, or choose another folder",
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)


class Index:
    """A sweep's index, kept in a file that is replaced as a whole after every change.

    Args:
        folder: the sweep's.
        content: as in the file.
    """

    def __init__(self, folder: Path, content: SweepIndex) -> None:
        self.folder = folder
        self.content = content

    @classmethod
    def read(cls, folder: Path, base: SweepBase) -> Index:
        """The index in ``folder``, or a new one, which is not written yet.

        Args:
            folder: the sweep's.
            base: the recipe of a new one.

        Raises:
            UserError: it is damaged, or the folder holds something else.
        """
        if (folder / SWEEP).exists():
            return cls(folder, read_record(folder / SWEEP, SweepIndex))
        if folder.exists() and any(path.name != _LOCK for path in folder.iterdir()):
            raise ConfigError(
                f"{folder} holds something that is not a sweep",
                where="--out",
                allowed=f"a new folder, or one with a {SWEEP}",
            )
        return cls(folder, SweepIndex(base, []))

    def include(
        self, variants: Variants, seeds: Sequence[int], evaluation: str | None
    ) -> list[SweepEntry]:
        """Add what is new, and find the entries of these overlays and seeds.

        Args:
            variants: the overlays.
            seeds: one run of each overlay for each.
            evaluation: configuration of a test after each run.

        Returns:
            The entries that are asked for, overlays together, in the order of the arguments.
        """
        content = self.content
        known = {(entry.group, entry.overlay, entry.seed): entry for entry in content.entries}
        described = {(overlay.group, overlay.overlay) for overlay in content.overlays}
        content.evaluation = evaluation or content.evaluation
        asked = []
        for overlay, changed in variants:
            if (overlay.group, overlay.name) not in described:
                file = None if overlay.file is None else str(overlay.file)
                found = SweepOverlay(overlay.name, overlay.group, file, dict(changed))
                content.overlays.append(found)
            for seed in seeds:
                entry = known.get((overlay.group, overlay.name, seed))
                if entry is None:
                    run = f"{overlay.label}/seed_{seed}"
                    entry = SweepEntry(overlay.name, overlay.group, seed, run)
                    content.entries.append(entry)
                if evaluation is not None and entry.test is None:
                    entry.test = SweepTest(f"{entry.run}/test")
                asked.append(entry)
        return asked

    def check(
        self, resolved: Mapping[str, Any], variants: Variants, evaluation: str | None
    ) -> None:
        """Refuse to go on with other settings. Overlays, seeds and a test may be added.

        Args:
            resolved: the recipe's configuration as it is now.
            variants: the overlays as they are now.
            evaluation: configuration of the test.

        Raises:
            ConfigError: naming the settings that differ.
        """
        test = self.content.evaluation
        past = {(old.group, old.overlay): old.changes for old in self.content.overlays}
        known = [(o, changed, past.get((o.group, o.name))) for o, changed in variants]
        compared = [
            ("", self.content.base.resolved, resolved),
            *((f"{o.label}: ", old, changed) for o, changed, old in known if old is not None),
            *([("", {"--eval": test}, {"--eval": evaluation})] if test and evaluation else []),
        ]
        different = [
            f"{prefix}{key}: {_shown(before, key)}, now {_shown(now, key)}"
            for prefix, before, now in compared
            for key in changes(before, json.loads(json.dumps(now)))  # JSON has no tuples
        ]
        if different:
            more = len(different) - _DIFFERENCES_SHOWN
            shown = different[:_DIFFERENCES_SHOWN] + [f"and {more} more"] * (more > 0)
            raise ConfigError(
                f"{self.folder} holds a sweep with other settings: {'; '.join(shown)}",
                where="--out",
                allowed="the same settings; overlays and seeds may be added",
                way_out="another folder, or the settings of before",
            )

    def write(self) -> None:
        """Replace the file."""
        write_json(self.folder / SWEEP, self.content)


def _shown(values: Mapping[str, Any], key: str) -> str:
    flat = dict(flatten(values))
    text = json.dumps(flat[key]) if key in flat else "not there"
    return text if len(text) <= 80 else text[:80] + " ..."
