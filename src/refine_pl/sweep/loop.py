"""The loop of a sweep: one run after the other, or a few at a time, and after each its test."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from refine_pl.errors import ConfigError
from refine_pl.sweep.jobs import Program, Task, side_by_side
from refine_pl.sweep.process import (
    LOG,
    PROGRAM,
    clear,
    newest_checkpoint,
    prepare,
    reason,
    was_interrupted,
)
from refine_pl.training.record_files import write_json
from refine_pl.training.run_folder import (
    SWEEP,
    SweepEntry,
    SweepIndex,
    SweepOverlay,
    SweepTest,
)

_TEST_LOG = "test.log"


@dataclass(frozen=True)
class Sweep:
    """A sweep that goes on.

    Args:
        folder: results.
        index: what it is made of.
        runs: the folders of the runs that are asked for, in their order.
        seeded: the settings that are given the seed.
        retry: run those again that failed.
        jobs: how many runs there are at a time.
    """

    folder: Path
    index: SweepIndex
    runs: Sequence[str]
    seeded: Sequence[str]
    retry: bool = False
    jobs: int = 1

    @property
    def asked(self) -> list[SweepEntry]:
        """The entries that are asked for, in their order."""
        entries = {entry.run: entry for entry in self.index.entries}
        return [entries[run] for run in self.runs]

    def commands(self) -> Iterator[list[str]]:
        """The arguments of everything that is due, without the program's name."""
        for entry in self.asked:
            if self._is_due(entry):
                yield self._fit(entry)
            if entry.test is not None and self._is_due(entry.test):
                yield self._test(entry.test)

    def run(self, held: int, say: Callable[[str, str], None]) -> list[tuple[str, str, Path]]:
        """Run every entry that is not finished; the index is written after every change.

        Args:
            held: a file descriptor that the processes inherit.
            say: shows a text and what follows it.

        Returns:
            Of everything that has failed, now or before: name, reason, log.

        Raises:
            ConfigError: a configuration was changed after the sweep had started.
            KeyboardInterrupt: a signal has come; the runs that it found have ended too.
        """
        self.write()
        contents = {entry.label: self._contents(entry) for entry in self.asked}
        due = [entry for entry in self.asked if self._is_due(entry) or self._test_is_due(entry)]
        spent: list[float] = []

        def told(number: int, entry: SweepEntry) -> Task:
            """A run, with a line about it."""
            title = f"[{number}/{len(due)}] {entry.label} seed {entry.seed} ... "
            alone = self.jobs == 1
            say(title, "" if alone else "\n")
            if self._contents(entry) != contents[entry.label]:
                raise ConfigError(
                    f"the configuration of {entry.label} was changed after the sweep had started",
                    way_out="start the sweep again, with another --out",
                )
            started = time.monotonic()
            outcome = yield from self._run(entry)
            spent.append(time.monotonic() - started)
            left = sum(spent) / len(spent) * (len(due) - len(spent)) / self.jobs
            rest = f"; about {duration(left)} left" if left else ""
            say(f"{'' if alone else title}{outcome}, {duration(spent[-1])}{rest}", "\n")
            return outcome

        tasks = (told(number, entry) for number, entry in enumerate(due, 1))
        for _ in side_by_side(tasks, self.jobs, held):
            pass
        return list(self._failures())

    def _overlay(self, entry: SweepEntry) -> SweepOverlay:
        return next(o for o in self.index.overlays if o.label == entry.label)

    def _files(self, entry: SweepEntry) -> list[str]:
        """The configurations of a run, in their order."""
        file = self._overlay(entry).file
        return [*self.index.base.configs, *([file] if file else [])]

    def _contents(self, entry: SweepEntry) -> list[bytes]:
        return [Path(file).read_bytes() for file in self._files(entry)]

    def _fit(self, entry: SweepEntry, checkpoint: Path | None = None) -> list[str]:
        words = ["fit", *(word for file in self._files(entry) for word in ("--config", file))]
        words += [*self.index.base.options, *self._overlay(entry).options]
        run = self.folder / entry.run
        logger = {"save_dir": run.parent.parent, "name": run.parent.name, "version": run.name}
        for name in self.seeded:
            words += [f"--{name}", str(entry.seed)]
        for name, value in logger.items():
            words += [f"--trainer.logger.init_args.{name}", str(value)]
        return words + (["--ckpt_path", str(checkpoint)] if checkpoint else [])

    def _test(self, test: SweepTest, checkpoint: Path | str = "CHECKPOINT") -> list[str]:
        words = ["test", "--config", str(self.index.evaluation), "--ckpt_path", str(checkpoint)]
        return [*words, "--out", str(self.folder / test.folder)]

    def _is_due(self, stage: SweepEntry | SweepTest) -> bool:
        """Not done, and not failed either: it was interrupted, or has not started."""
        return stage.status != "done" and (self.retry or stage.status != "failed")

    def _test_is_due(self, entry: SweepEntry) -> bool:
        return entry.status == "done" and entry.test is not None and self._is_due(entry.test)

    def _run(self, entry: SweepEntry) -> Task:
        """What is due of an entry; how it ended."""
        run, test = self.folder / entry.run, entry.test
        if self._is_due(entry):
            yield from self._attempt(entry, self._fit(entry, prepare(run)), run / LOG)
            if entry.status != "done":
                return "FAILED" if entry.status == "failed" else entry.status
            clear(run)
        if test is not None and self._is_due(test):
            checkpoint = newest_checkpoint(run)
            if checkpoint is None:
                test.status = "failed"
                test.error = "the run wrote no checkpoint: its trainer needs a ModelCheckpoint"
                self.write()
            else:
                yield from self._attempt(test, self._test(test, checkpoint), run / _TEST_LOG)
        if test is None or test.status == "done":
            return "done"
        return f"done, test {'FAILED' if test.status == 'failed' else test.status}"

    def _attempt(
        self, stage: SweepEntry | SweepTest, words: Sequence[str], log: Path
    ) -> Generator[Program, int, None]:
        """Run an entry or its test, and note how it ended."""
        before = stage.seconds or 0.0
        start = log.stat().st_size if log.exists() else 0
        started = time.monotonic()

        def note(status: str, error: str | None = None) -> None:
            stage.status, stage.error = status, error
            if status != "running":
                stage.seconds = round(before + time.monotonic() - started, 1)
            self.write()

        note("running")
        try:
            code = yield Program([*PROGRAM, *words], log)
        except KeyboardInterrupt:
            note("interrupted")
            raise
        if code == 0:
            note("done")
        elif was_interrupted(code):
            note("interrupted", reason(log, start, code))
        else:
            note("failed", reason(log, start, code))

    def interrupted(self) -> int:
        """How many runs and tests that are asked for were asked to stop."""
        stages = [stage for entry in self.asked for stage in (entry, entry.test)]
        return sum(stage is not None and stage.status == "interrupted" for stage in stages)

    def _failures(self) -> Iterator[tuple[str, str, Path]]:
        for entry in self.asked:
            for stage, what, log in ((entry, "", LOG), (entry.test, ", test", _TEST_LOG)):
                if stage is not None and stage.status == "failed":
                    name = f"{entry.label} seed {entry.seed}{what}"
                    yield name, stage.error or "", self.folder / entry.run / log

    def write(self) -> None:
        """Write the index."""
        write_json(self.folder / SWEEP, self.index)


def duration(seconds: float) -> str:
    """``42 s``, ``7 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
