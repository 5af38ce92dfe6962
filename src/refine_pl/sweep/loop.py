"""The loop of a sweep: one run after the other, and after each one its test."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from refine_pl.errors import ConfigError
from refine_pl.sweep.index import Entry, Index
from refine_pl.sweep.overlays import Overlay
from refine_pl.sweep.process import (
    LOG,
    PROGRAM,
    clear,
    newest_checkpoint,
    prepare,
    reason,
    run_logged,
)

_TEST_LOG = "test.log"


@dataclass(frozen=True)
class Sweep:
    """What the runs of a sweep share.

    Args:
        folder: results.
        configs: of the recipe, in their order.
        options: for every run, after the overlay.
        overlays: by group and name.
        seeded: the settings that are given the seed.
        evaluation: configuration of a test after each run.
    """

    folder: Path
    configs: Sequence[str]
    options: Sequence[str]
    overlays: dict[tuple[str, str], Overlay]
    seeded: Sequence[str]
    evaluation: str | None = None

    def fit(self, entry: Entry, checkpoint: Path | None = None) -> list[str]:
        """The arguments of an entry's run, without the program's name."""
        overlay = self.overlays[entry["group"], entry["overlay"]]
        files = [*self.configs, *([] if overlay.file is None else [str(overlay.file)])]
        words = ["fit", *(word for file in files for word in ("--config", file)), *self.options]
        run = self.folder / entry["run"]
        logger = {"save_dir": run.parent.parent, "name": run.parent.name, "version": run.name}
        for name in self.seeded:
            words += [f"--{name}", str(entry["seed"])]
        for name, value in logger.items():
            words += [f"--trainer.logger.init_args.{name}", str(value)]
        return words + (["--ckpt_path", str(checkpoint)] if checkpoint else [])

    def test(self, entry: Entry, checkpoint: Path | str = "CHECKPOINT") -> list[str]:
        """The arguments of an entry's test."""
        assert self.evaluation is not None
        out = self.folder / entry["test"]["folder"]
        words = ["test", "--config", self.evaluation, "--ckpt_path", str(checkpoint)]
        return [*words, "--out", str(out)]


def needs_fit(entry: Entry, retry: bool) -> bool:
    """Whether an entry's run is to be started; what is neither done nor failed was interrupted."""
    return entry["status"] not in ("done", "failed") or (retry and entry["status"] == "failed")


def needs_test(entry: Entry, retry: bool) -> bool:
    """Whether an entry's test is to be started once its run is done."""
    return "test" in entry and needs_fit(entry["test"], retry)


def run_sweep(
    sweep: Sweep,
    index: Index,
    asked: Sequence[Entry],
    *,
    retry: bool,
    held: int,
    say: Callable[[str, str], None],
) -> list[tuple[str, str, Path]]:
    """Run every entry that is not finished.

    Args:
        sweep: what the runs share.
        index: is written after every change.
        asked: the entries to run, in this order.
        retry: run those again that failed.
        held: a file descriptor that the processes inherit.
        say: shows a text and what follows it.

    Returns:
        Of everything that has failed, now or before: name, reason, log.

    Raises:
        ConfigError: a configuration was changed after the sweep had started.
        KeyboardInterrupt: Ctrl-C.
    """
    contents = {o: _contents(sweep, o) for o in sweep.overlays.values()}
    due = [
        e for e in asked if needs_fit(e, retry) or (e["status"] == "done" and needs_test(e, retry))
    ]
    spent: list[float] = []
    for number, entry in enumerate(due, 1):
        overlay = sweep.overlays[entry["group"], entry["overlay"]]
        say(f"[{number}/{len(due)}] {overlay.label} seed {entry['seed']} ... ", "")
        if _contents(sweep, overlay) != contents[overlay]:
            raise ConfigError(
                f"the configuration of {overlay.label} was changed after the sweep had started",
                way_out="start the sweep again, with another --out",
            )
        started = time.monotonic()
        if needs_fit(entry, retry):
            _fit(sweep, index, entry, held)
        if entry["status"] == "done" and needs_test(entry, retry):
            _test(sweep, index, entry, held)
        seconds = time.monotonic() - started
        spent.append(seconds)
        left = sum(spent) / len(spent) * (len(due) - number)
        say(
            f"{_outcome(entry)}, {duration(seconds)}"
            + (f"; about {duration(left)} left" if left else ""),
            "\n",
        )
    return _failures(sweep, asked)


def duration(seconds: float) -> str:
    """``42 s``, ``7 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _fit(sweep: Sweep, index: Index, entry: Entry, held: int) -> None:
    run = sweep.folder / entry["run"]
    checkpoint = prepare(run)
    _attempt(index, entry, sweep.fit(entry, checkpoint), run / LOG, held)
    if entry["status"] == "done":
        clear(run)


def _test(sweep: Sweep, index: Index, entry: Entry, held: int) -> None:
    run = sweep.folder / entry["run"]
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        error = "the run wrote no checkpoint: its trainer needs a ModelCheckpoint"
        index.update(entry["test"], status="failed", error=error)
        return
    _attempt(index, entry["test"], sweep.test(entry, checkpoint), run / _TEST_LOG, held)


def _attempt(index: Index, stage: Entry, words: Sequence[str], log: Path, held: int) -> None:
    """Run one stage of an entry, and note how it ended."""
    before = stage["seconds"] or 0.0
    start = log.stat().st_size if log.exists() else 0
    index.update(stage, status="running", error=None)
    started = time.monotonic()

    def note(status: str, error: str | None = None) -> None:
        seconds = round(before + time.monotonic() - started, 1)
        index.update(stage, status=status, seconds=seconds, error=error)

    try:
        code = run_logged([*PROGRAM, *words], log, held)
    except KeyboardInterrupt:
        note("pending")
        raise
    if code == 0:
        note("done")
    else:
        note("failed", reason(log, start, code))


def _outcome(entry: Entry) -> str:
    if entry["status"] != "done":
        return "FAILED"
    test = entry.get("test")
    return "done" if test is None else "done" if test["status"] == "done" else "done, test FAILED"


def _failures(sweep: Sweep, asked: Sequence[Entry]) -> list[tuple[str, str, Path]]:
    failed = []
    for entry in asked:
        name = f"{entry['group']}/{entry['overlay']} seed {entry['seed']}"
        run = sweep.folder / entry["run"]
        if entry["status"] == "failed":
            failed.append((name, entry["error"], run / LOG))
        elif entry.get("test", {}).get("status") == "failed":
            failed.append((f"{name}, test", entry["test"]["error"], run / _TEST_LOG))
    return failed


def _contents(sweep: Sweep, overlay: Overlay) -> list[bytes]:
    files = [Path(file) for file in sweep.configs]
    if overlay.file is not None:
        files.append(overlay.file)
    return [file.read_bytes() for file in files]
