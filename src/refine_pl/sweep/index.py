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

Entry = dict[str, Any]

_NAME, _LOCK = "sweep.json", ".lock"
_DIFFERENCES_SHOWN = 5


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
    """The entries of a sweep, kept in a file that is replaced as a whole after every change.

    ``entries`` have ``overlay, group, seed, run`` (a folder, from the sweep's), ``status``
    (pending, running, done, failed), ``seconds`` (of all attempts) and ``error``; with an
    evaluation also ``test``: its ``folder, status, seconds, error``. ``overlays`` says what each
    one changes.

    Args:
        folder: the sweep's.
        content: as in the file.
    """

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder = folder
        self.content = content

    @property
    def entries(self) -> list[Entry]:
        """In the order in which they are run."""
        entries: list[Entry] = self.content["entries"]
        return entries

    @classmethod
    def read(cls, folder: Path, base: Mapping[str, Any]) -> Index:
        """The index in ``folder``, or a new one, which is not written yet.

        Args:
            folder: the sweep's.
            base: ``configs``, ``options`` and ``resolved`` of a new one: the recipe's settings.

        Raises:
            ConfigError: it is damaged, or the folder holds something else.
        """
        file = folder / _NAME
        if not file.exists():
            if folder.exists() and any(p.name != _LOCK for p in folder.iterdir()):
                raise ConfigError(
                    f"{folder} holds something that is not a sweep",
                    where="--out",
                    allowed=f"a new folder, or one with a {_NAME}",
                )
            new: dict[str, Any] = {
                "base": dict(base),
                "evaluation": None,
                "overlays": [],
                "entries": [],
            }
            return cls(folder, new)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            content["base"]["resolved"], content["overlays"], content["entries"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file} is damaged: {error!r}", where="--out") from error
        return cls(folder, content)

    def include(
        self,
        overlays: Sequence[tuple[Overlay, Mapping[str, Any]]],
        seeds: Sequence[int],
        evaluation: str | None,
    ) -> list[Entry]:
        """Add what is new, and find the entries of these overlays and seeds.

        Args:
            overlays: with what each one changes.
            seeds: one run of each overlay for each.
            evaluation: configuration of a test after each run.

        Returns:
            The entries that are asked for, overlays together, in the order of the arguments.
        """
        known = {(e["group"], e["overlay"], e["seed"]): e for e in self.entries}
        described = {(o["group"], o["overlay"]) for o in self.content["overlays"]}
        if evaluation is not None:
            self.content["evaluation"] = evaluation
        asked = []
        for overlay, changed in overlays:
            if (overlay.group, overlay.name) not in described:
                self.content["overlays"].append(_description(overlay, changed))
            for seed in seeds:
                entry = known.get((overlay.group, overlay.name, seed))
                if entry is None:
                    entry = _entry(overlay, seed)
                    self.entries.append(entry)
                if evaluation is not None:
                    test = {"folder": f"{entry['run']}/test", "status": "pending"}
                    entry.setdefault("test", test | {"seconds": None, "error": None})
                asked.append(entry)
        return asked

    def check(
        self,
        resolved: Mapping[str, Any],
        overlays: Sequence[tuple[Overlay, Mapping[str, Any]]],
        evaluation: str | None,
    ) -> None:
        """Refuse to go on with other settings. Overlays, seeds and a test may be added.

        Args:
            resolved: the recipe's configuration as it is now.
            overlays: with what each one changes now.
            evaluation: configuration of the test.

        Raises:
            ConfigError: naming the settings that differ.
        """
        before = self.content["base"]["resolved"]
        different = [
            f"{key}: {_shown(before, key)}, now {_shown(resolved, key)}"
            for key in changes(before, json.loads(json.dumps(resolved)))
        ]
        past = {(o["group"], o["overlay"]): o["changes"] for o in self.content["overlays"]}
        for overlay, changed in overlays:
            old = past.get((overlay.group, overlay.name))
            new = json.loads(json.dumps(changed))
            if old is not None and old != new:
                keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
                different.append(
                    f"{overlay.label}: "
                    + ", ".join(f"{k} {old.get(k)}, now {new.get(k)}" for k in keys)
                )
        test = self.content.get("evaluation")
        if None not in (test, evaluation) and test != evaluation:
            different.append(f"--eval: {test}, now {evaluation}")
        if different:
            more = len(different) - _DIFFERENCES_SHOWN
            shown = different[:_DIFFERENCES_SHOWN] + [f"and {more} more"] * (more > 0)
            raise ConfigError(
                f"{self.folder} holds a sweep with other settings: {'; '.join(shown)}",
                where="--out",
                allowed="the same settings; overlays and seeds may be added",
                way_out="another folder, or the settings of before",
            )

    def update(self, entry: Entry, **values: Any) -> None:
        """Change an entry, or the ``test`` of one, and write."""
        entry |= values
        self.write()

    def write(self) -> None:
        """Replace the file."""
        file = self.folder / _NAME
        new = file.with_suffix(".json.new")
        new.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")
        os.replace(new, file)


def _entry(overlay: Overlay, seed: int) -> Entry:
    return {
        "overlay": overlay.name,
        "group": overlay.group,
        "seed": seed,
        "run": f"{overlay.label}/seed_{seed}",
        "status": "pending",
        "seconds": None,
        "error": None,
    }


def _description(overlay: Overlay, changed: Mapping[str, Any]) -> dict[str, Any]:
    file = None if overlay.file is None else str(overlay.file)
    return {
        "overlay": overlay.name,
        "group": overlay.group,
        "file": file,
        "changes": dict(changed),
    }


def _shown(values: Mapping[str, Any], key: str) -> str:
    flat = dict(flatten(values))
    text = json.dumps(flat[key]) if key in flat else "not there"
    return text if len(text) <= 80 else text[:80] + " ..."
