"""``refine-pl compare``: arms from one start against plain training."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from refine_pl.commands.export import export
from refine_pl.commands.resolved import resolve
from refine_pl.commands.sweep import (
    SEEDED,
    carry_out,
    parse_runs,
    resolve_all,
    run_arguments,
    say,
    shared,
)
from refine_pl.comparison.arms import (
    BASELINE,
    baseline_options,
    check_measured_alike,
    find_arms,
    longer_arm,
    to_match,
)
from refine_pl.comparison.records import COMPARISON, ArmResult, Comparison
from refine_pl.errors import ConfigError
from refine_pl.recipes import folder as recipes_folder
from refine_pl.sweep.index import continued
from refine_pl.sweep.loop import Sweep
from refine_pl.sweep.overlays import flatten
from refine_pl.training.record_files import write_json
from refine_pl.training.run_folder import (
    SweepBase,
    SweepEntry,
    SweepIndex,
    SweepOverlay,
)

_HELP = """Trains arms from one start, each with a fresh optimizer, the same data and the same
steps, and plain next-token training (SFT) beside them. Every arm is measured on the same held-out
documents, at the same positions and with the same random numbers (model.validation), and compared
with SFT document by document. Each is also compared with SFT at the sampling temperature of equal
next-token loss. An arm is the recipe itself (refine), an overlay, or a folder of overlays. The same
command goes on where it stopped. Options after -- are given to every run."""


def main(argv: Sequence[str]) -> int:
    """Check everything, run what is not finished, measure the control, show the result.

    Returns:
        0, or 1 if a run has failed or was interrupted.

    Raises:
        UserError: the arguments or a configuration cannot be used.
        Interrupted: a signal has come; its text says how to go on.
    """
    parser = run_arguments("refine-pl compare", _HELP)
    add = parser.add_argument
    add("--arms", nargs="+", default=["refine"], metavar="ARM", help="refine, and overlays")
    add("--from", dest="start", metavar="START", help="a checkpoint, a model's folder or name")
    matched = "SFT with as much computing as each of these arms; without a name as each of all"
    add("--compute_matched", nargs="*", metavar="ARM", help=matched)
    args, options = parse_runs(parser, argv)
    folder = Path(args.out)
    start, given = _start(args.start, folder)
    options = [*given, *options]
    arms = find_arms(args.arms, args.config[-1])
    files = [word for file in args.config for word in ("--config", file)]
    base = SweepOverlay("sft", BASELINE, None)
    base.options = baseline_options(resolve(["fit", *files, *options]))
    overlays = [base, *arms]
    for arm in to_match(args.compute_matched, arms):
        file = ["--config", arm.file] if arm.file else []
        overlays.append(longer_arm(arm, resolve(["fit", *files, *file, *options]), base))
    recipe = resolve_all(args.config, overlays, options)
    check_measured_alike(overlays)
    entries = [
        SweepEntry(overlay.overlay, overlay.group, seed, f"{overlay.label}/seed_{seed}")
        for seed in args.seeds  # seed by seed, so that what is cut short can be compared
        for overlay in overlays
    ]
    asked = SweepIndex(SweepBase(args.config, options, shared(recipe)), entries, None, overlays)
    seeded = [name for name in SEEDED if name in dict(flatten(recipe))]
    runs = [entry.run for entry in entries]
    sweep = Sweep(folder, continued(folder, asked), runs, seeded, args.retry, args.jobs)

    def prepare() -> None:
        if start is not None and not (start / "config.json").is_file():
            export(args.start, str(start), None)

    def show(sweep: Sweep) -> None:
        _compare(sweep, base, arms, args.seeds, str(args.start or args.config[-1]))

    again = shlex.join(["refine-pl", "compare", *argv])
    return carry_out(sweep, asked, again, args.dry_run, show, prepare)


def _start(name: str | None, out: Path) -> tuple[Path | None, list[str]]:
    """The folder that the start is to be exported to, if it is a checkpoint, and the options.

    Raises:
        ConfigError: a checkpoint that is not there.
    """
    if name is None:
        return None, []
    shipped = recipes_folder() / "starts" / name
    path = Path(name)
    is_checkpoint = path.suffix == ".ckpt"
    if is_checkpoint and not path.exists():
        raise ConfigError(f"there is no checkpoint {name}", where="--from")
    exported = out / "start" if is_checkpoint else None
    model = exported or (shipped if shipped.is_dir() and not path.exists() else name)
    return exported, ["--model.backbone", "null", "--model.pretrained", str(model)]


def _compare(
    sweep: Sweep, base: SweepOverlay, arms: Sequence[SweepOverlay], seeds: Sequence[int], start: str
) -> None:
    """Compare what is done, write it and print it."""
    from refine_pl.commands.comparing import compare_arm, measure_controls
    from refine_pl.comparison.show import print_comparison

    done = {entry.run for entry in sweep.asked if entry.status == "done"}

    def finished(overlay: SweepOverlay) -> list[int]:
        return [seed for seed in seeds if f"{overlay.label}/seed_{seed}" in done]

    for seed in finished(base):
        ready = [arm for arm in arms if seed in finished(arm)]
        measure_controls(sweep.folder, base, ready, seed, say)
    known = {overlay.label: overlay for overlay in sweep.index.overlays}

    def results() -> Iterator[ArmResult]:
        for arm in arms:
            common = [seed for seed in finished(arm) if seed in finished(base)]
            if common:
                longer = known.get(f"{BASELINE}/sft_for_{arm.overlay}")
                use = longer is not None and set(common) <= set(finished(longer))
                yield compare_arm(sweep.folder, base, arm, longer if use else None, common)

    found = list(results())
    if not found:
        say("nothing to compare: neither arm has finished")
        return
    complete = [seed for seed in seeds if all(seed in finished(arm) for arm in (base, *arms))]
    documents = _documents(sweep.folder / f"{base.label}/seed_{finished(base)[0]}")
    comparison = Comparison(start, complete, documents, 0.95, found)
    write_json(sweep.folder / COMPARISON, comparison)
    print_comparison(comparison)
    say(f"numbers  {sweep.folder / COMPARISON}")
    say(f"report   refine-pl report {sweep.folder}")


def _documents(run: Path) -> int:
    from refine_pl.comparison.pairing import held_out

    return len({record.document for record in held_out(run)})
