"""``refine-pl sweep``: overlays x seeds of one recipe, one run after the other."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from refine_pl.commands.arguments import Arguments
from refine_pl.errors import ConfigError
from refine_pl.interrupts import Interrupted
from refine_pl.sweep.index import continued, exclusive
from refine_pl.sweep.loop import Sweep
from refine_pl.sweep.overlays import changes, check_effect, find_overlays, flatten
from refine_pl.sweep.table import results_table
from refine_pl.training.run_folder import (
    SWEEP,
    SweepBase,
    SweepEntry,
    SweepIndex,
    SweepOverlay,
    SweepTest,
)

_HELP = """Runs a recipe with each overlay and each seed, one after the other or a few at a time,
each run in a process and a folder of its own: OUT/GROUP/OVERLAY/seed_S. The group is the name of
the overlay's folder. OUT/sweep.json is the index. The same command goes on where a sweep was
interrupted: finished runs are skipped, the interrupted ones resume from their last checkpoints.
Options after -- are given to every run: refine-pl sweep ... -- --trainer.max_steps 10"""

# What the sweep itself gives to each run.
SEEDED = ("seed_everything", "model.seed", "data.init_args.seed")
_WIDE = 1000  # columns
_PLACED = {f"logger.init_args.{name}" for name in ("save_dir", "name", "version")}


def main(argv: Sequence[str]) -> int:
    """Check everything, run what is not finished, show the results.

    Returns:
        0, or 1 if a run has failed or was interrupted.

    Raises:
        UserError: the arguments or a configuration cannot be used.
        Interrupted: a signal has come; its text says how to go on.
    """
    args, options = _parse(argv)
    overlays = find_overlays(args.overlays, args.config[-1], args.base)
    base = resolve_all(args.config, overlays, options)
    entries = [
        SweepEntry(overlay.overlay, overlay.group, seed, f"{overlay.label}/seed_{seed}")
        for overlay in overlays
        for seed in args.seeds
    ]
    for entry in entries if args.eval else ():
        entry.test = SweepTest(f"{entry.run}/test")
    recipe = SweepBase(args.config, options, shared(base))
    asked = SweepIndex(recipe, entries, args.eval, overlays)
    folder = Path(args.out)
    seeded = [name for name in SEEDED if name in dict(flatten(base))]
    runs = [entry.run for entry in entries]

    sweep = Sweep(folder, continued(folder, asked), runs, seeded, args.retry, args.jobs)
    again = shlex.join(["refine-pl", "sweep", *argv])
    return carry_out(sweep, asked, again, args.dry_run, _show_results)


def carry_out(
    sweep: Sweep,
    asked: SweepIndex,
    again: str,
    dry_run: bool,
    show: Callable[[Sweep], None],
    prepare: Callable[[], None] | None = None,
) -> int:
    """Run what is not finished, and show the results.

    Args:
        sweep: what is to be run.
        asked: what was asked for now.
        again: the command that goes on.
        dry_run: print the commands alone.
        show: shows the results; what it raises is said, after the runs that failed.
        prepare: is called before the first run, once the folder is held.

    Returns:
        0, or 1 if a run has failed or was interrupted.
    """
    if dry_run:
        for words in sweep.commands():
            say(shlex.join(["refine-pl", *words]))
        return 0
    with exclusive(sweep.folder) as held:
        sweep = replace(sweep, index=continued(sweep.folder, asked))  # now nobody else writes
        try:
            sweep.write()
            if prepare is not None:
                prepare()
            failed = sweep.run(held, say)
            show(sweep)
        except KeyboardInterrupt as stop:
            say("interrupted")
            signum = stop.signum if isinstance(stop, Interrupted) else signal.SIGINT
            raise Interrupted(signum, f"to go on: {again}") from None
    for name, error, log in failed:
        say(f"FAILED {name}: {error}\n  log: {log}")
    if failed:
        say(f"{len(failed)} failed; --retry runs them again")
    interrupted = sweep.interrupted()
    if interrupted:
        say(f"{interrupted} interrupted; to go on: {again}")
    return 1 if failed or interrupted else 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = run_arguments("refine-pl sweep", _HELP)
    add = parser.add_argument
    add("--overlays", nargs="+", default=[], metavar="PATH", help="files, or folders of files")
    add("--base", action="store_true", help="run the recipe itself too")
    add("--eval", metavar="FILE", help="configuration for refine-pl test after each run")
    args, options = parse_runs(parser, argv)
    if args.eval is not None and not Path(args.eval).is_file():
        raise ConfigError(f"there is no configuration file {args.eval}", where="--eval")
    return args, options


def run_arguments(program: str, description: str) -> Arguments:
    """The arguments of a command that runs a recipe many times."""
    other = f"options for every run come after --: {program} ... -- --model.seed 1"
    parser = Arguments(other=other, prog=program, description=description)
    add = parser.add_argument
    add("--config", action="append", required=True, help="the recipe; may be given several times")
    add("--seeds", nargs="+", type=seed_number, default=[0], metavar="S", help="default: 0")
    add("--out", required=True, help="folder of the results")
    add("--retry", action="store_true", help="run those again that failed")
    add("--jobs", type=_jobs, default=1, metavar="N", help="runs at a time; they share the cores")
    add("--dry_run", action="store_true", help="print the commands, and run nothing")
    return parser


def parse_runs(parser: Arguments, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of the command, and the options for every run, which follow ``--``."""
    words = list(argv)
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut])
    if len(set(args.seeds)) < len(args.seeds):
        raise ConfigError(f"a seed is given twice: {args.seeds}", where="--seeds")
    return args, words[cut + 1 :]


def seed_number(text: str) -> int:
    """A seed as it is written on the command line."""
    seed = int(text)
    if seed < 0:
        raise ValueError(text)
    return seed


seed_number.__name__ = "seed (a whole number from 0)"


def _jobs(text: str) -> int:
    jobs = int(text)
    if jobs < 1:
        raise ValueError(text)
    return jobs


_jobs.__name__ = "number of runs (a whole number from 1)"


def resolve_all(
    configs: Sequence[str], overlays: Sequence[SweepOverlay], options: Sequence[str]
) -> dict[str, Any]:
    """The recipe's settings; the overlays get what they change.

    Every configuration is parsed before anything runs.

    Raises:
        UserError: a configuration cannot be used, or an overlay has no effect.
    """
    from refine_pl.commands.resolved import resolve

    files = [word for file in configs for word in ("--config", file)]
    base = resolve(["fit", *files, *options])
    _check_places(base)
    for overlay in overlays:
        if overlay.file is not None or overlay.options:
            file = ["--config", overlay.file] if overlay.file else []
            with_it = resolve(["fit", *files, *file, *options, *overlay.options])
            overlay.changes = changes(shared(base), shared(with_it))
            check_effect(overlay, with_it)
            if not overlay.changes:
                say(f"{overlay.label} changes nothing: it is the recipe as it is")
    return base


def _check_places(base: Mapping[str, Any]) -> None:
    """Refuse a recipe whose runs would write into each other's folders."""
    from refine_pl.commands.callback_keys import TRAINING_KEYS

    if not _PLACED.issubset(dict(flatten(base["trainer"]))):
        raise ConfigError(
            "the recipe's trainer.logger gives a run no folder of its own",
            where="trainer.logger",
            allowed="one logger with save_dir, name and version",
            way_out="lightning.pytorch.loggers.TensorBoardLogger",
        )
    callbacks = {key: base[key] for key in TRAINING_KEYS}
    for number, callback in enumerate(base["trainer"].get("callbacks") or ()):
        callbacks[f"trainer.callbacks[{number}]"] = callback
    for key, value in flatten(callbacks):
        name = key.rpartition(".")[2]
        if name in ("dirpath", "directory") and value is not None:
            raise ConfigError(
                f"every run would write into {value}",
                where=key,
                way_out=f"leave {name} out: each run has a folder of its own",
            )


def shared(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key, without those that the sweep gives to each run."""
    return {
        key: value
        for key, value in flatten(resolved)
        if key not in SEEDED and not key.startswith("trainer.logger")
    }


def _show_results(sweep: Sweep) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    table = results_table(sweep.folder, sweep.asked)
    # Where a terminal is too narrow, or there is none, a long line is better than a lost number.
    anything = console.options.update(width=_WIDE)
    console.width = max(console.width, console.measure(table, options=anything).maximum)
    console.print(table)
    console.print(f"index    {sweep.folder / SWEEP}", soft_wrap=True)
    console.print(f"report   refine-pl report {sweep.folder}", soft_wrap=True)


def say(text: str, end: str = "\n") -> None:
    """Print at once, also where output is a pipe."""
    sys.stdout.write(text + end)
    sys.stdout.flush()
