"""The loop of a sweep: one run after the other, and after each one its test."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from refine_pl.errors import ConfigError
from refine_pl.sweep.index import Index
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
from refine_pl.training.run_folder import SweepEntry, SweepTest

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

    def overlay(self, entry: SweepEntry) -> Overlay:
        """That of an entry."""
        return self.overlays[entry.group, entry.overlay]

    def files(self, overlay: Overlay) -> list[str]:
        """The configurations of a run, in their order."""
        return [*self.configs, *([] if overlay.file is None else [str(overlay.file)])]

    def fit(self, entry: SweepEntry, checkpoint: Path | None = None) -> list[str]:
        """The arguments of an entry's run, without the program's name."""
        files = self.files(self.overlay(entry))
        words = ["fit", *(word for file in files for word in ("--config", file)), *self.options]
        run = self.folder / entry.run
        logger = {"save_dir": run.parent.parent, "name": run.parent.name, "version": run.name}
        for name in self.seeded:
            words += [f"--{name}", str(entry.seed)]
        for name, value in logger.items():
            words += [f"--trainer.logger.init_args.{name}", str(value)]
        return words + (["--ckpt_path", str(checkpoint)] if checkpoint else [])

    def test(self, test: SweepTest, checkpoint: Path | str = "CHECKPOINT") -> list[str]:
        """The arguments of an entry's test."""
        assert self.evaluation is not None
        words = ["test", "--config", self.evaluation, "--ckpt_path", str(checkpoint)]
        return [*words, "--out", str(self.folder / test.folder)]


def is_due(stage: SweepEntry | SweepTest, retry: bool) -> bool:
    """Whether a run or a test is to be started; neither done nor failed: it was interrupted."""
    return stage.status != "done" and (retry or stage.status != "failed")


def run_sweep(
    sweep: Sweep,
    index: Index,
    asked: Sequence[SweepEntry],
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
    contents = {overlay: _contents(sweep, overlay) for overlay in sweep.overlays.values()}
    due = [entry for entry in asked if is_due(entry, retry) or _test_is_due(entry, retry)]
    spent: list[float] = []
    for number, entry in enumerate(due, 1):
        overlay = sweep.overlay(entry)
        say(f"[{number}/{len(due)}] {overlay.label} seed {entry.seed} ... ", "")
        if _contents(sweep, overlay) != contents[overlay]:
            raise ConfigError(
                f"the configuration of {overlay.label} was changed after the sweep had started",
                way_out="start the sweep again, with another --out",
            )
        started = time.monotonic()
        if is_due(entry, retry):
            _fit(sweep, index, entry, held)
        if _test_is_due(entry, retry):
            _test(sweep, index, entry, held)
        spent.append(time.monotonic() - started)
        left = sum(spent) / len(spent) * (len(due) - number)
        rest = f"; about {duration(left)} left" if left else ""
        say(f"{_outcome(entry)}, {duration(spent[-1])}{rest}", "\n")
    return _failures(sweep, asked)


def duration(seconds: float) -> str:
    """``42 s``, ``7 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _test_is_due(entry: SweepEntry, retry: bool) -> bool:
    return entry.status == "done" and entry.test is not None and is_due(entry.test, retry)


def _fit(sweep: Sweep, index: Index, entry: SweepEntry, held: int) -> None:
    run = sweep.folder / entry.run
    checkpoint = prepare(run)
    _attempt(index, entry, sweep.fit(entry, checkpoint), run / LOG, held)
    if entry.status == "done":
        clear(run)


def _test(sweep: Sweep, index: Index, entry: SweepEntry, held: int) -> None:
    assert entry.test is not None
    run, test = sweep.folder / entry.run, entry.test
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        test.status = "failed"
        test.error = "the run wrote no checkpoint: its trainer needs a ModelCheckpoint"
        index.write()
        return
    _attempt(index, test, sweep.test(test, checkpoint), run / _TEST_LOG, held)


def _attempt(
    index: Index, stage: SweepEntry | SweepTest, words: Sequence[str], log: Path, held: int
) -> None:
    """Run an entry or its test, and note how it ended."""
    before = stage.seconds or 0.0
    start = log.stat().st_size if log.exists() else 0
    started = time.monotonic()

    def note(status: str, error: str | None = None) -> None:
        stage.status, stage.error = status, error
        if status != "running":
            stage.seconds = round(before + time.monotonic() - started, 1)
        index.write()

    note("running")
    try:
        code = run_logged([*PROGRAM, *words], log, held)
    except KeyboardInterrupt:
        note("pending")
        raise
    if code == 0:
        note("done")
    else:
        note("failed", reason(log, start, code))


def _outcome(entry: SweepEntry) -> str:
    if entry.status != "done":
        return "FAILED"
    return "done" if entry.test is None or entry.test.status == "done" else "done, test FAILED"


def _failures(sweep: Sweep, asked: Sequence[SweepEntry]) -> list[tuple[str, str, Path]]:
    failed = []
    for entry in asked:
        name, run = f"{sweep.overlay(entry).label} seed {entry.seed}", sweep.folder / entry.run
        if entry.status == "failed":
            failed.append((name, entry.error or "", run / LOG))
        elif entry.test is not None and entry.test.status == "failed":
            failed.append((f"{name}, test", entry.test.error or "", run / _TEST_LOG))
    return failed


def _contents(sweep: Sweep, overlay: Overlay) -> list[bytes]:
    return [Path(file).read_bytes() for file in sweep.files(overlay)]
