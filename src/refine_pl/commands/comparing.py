"""Finished runs of two arms to differences, with the baseline at other temperatures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from refine_pl.commands.opened import open_run
from refine_pl.comparison.control import Baseline
from refine_pl.comparison.cost import times_plain_run
from refine_pl.comparison.pairing import by_document, differences, held_out, sample
from refine_pl.comparison.records import ArmResult
from refine_pl.errors import ConfigError
from refine_pl.training.record_files import read_record, read_yaml, write_json
from refine_pl.training.run_folder import CONFIG, HeldOut, SweepOverlay

_COOLED = "cooled.json"  # Cooled, in the folder of the arm's run
_opened: dict[Path, Baseline] = {}


@dataclass(frozen=True, slots=True)
class Cooled:
    """The baseline at the temperature of an arm's next-token loss."""

    base: str  # its run
    temperature: float
    rows: list[HeldOut]


def measure_controls(
    folder: Path,
    base: SweepOverlay,
    arms: Sequence[SweepOverlay],
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Measure plain training of a seed at the temperature of each arm, where that was not done.

    Args:
        folder: of all runs.
        base: plain training.
        arms: those that have finished.
        seed: of all of them.
        say: shows a line.
    """

    def run(overlay: SweepOverlay) -> Path:
        return folder / overlay.label / f"seed_{seed}"

    due = [arm for arm in arms if not (run(arm) / _COOLED).is_file()]
    if due:
        what = f"{len(due)} temperature{'s' if len(due) > 1 else ''}"
        say(f"measuring {base.overlay} seed {seed} at {what}: the control ...")
    for arm in due:
        loss = statistics.fmean(by_document(held_out(run(arm)))["val/ntp_loss"].values())
        _cooled(run(arm), run(base), loss)


def compare_arm(
    folder: Path,
    base: SweepOverlay,
    arm: SweepOverlay,
    longer: SweepOverlay | None,
    seeds: Sequence[int],
) -> ArmResult:
    """An arm against plain training.

    Args:
        folder: of all runs.
        base: plain training with as many steps.
        arm: the arm.
        longer: plain training with as much computing.
        seeds: that all of them have finished.

    Raises:
        UserError: a run was not measured on the same documents, or cannot be opened again.
    """

    def runs(overlay: SweepOverlay) -> list[Path]:
        return [folder / overlay.label / f"seed_{seed}" for seed in seeds]

    ours, theirs = runs(arm), runs(base)
    numbers = [by_document(held_out(run)) for run in ours]
    plain = [by_document(held_out(run)) for run in theirs]
    cooled = [
        _cooled(run, other, statistics.fmean(here["val/ntp_loss"].values()))
        for run, other, here in zip(ours, theirs, numbers, strict=True)
    ]
    control = differences(numbers, [by_document(c.rows) for c in cooled])
    as_long = [by_document(held_out(run)) for run in runs(longer)] if longer else []
    return ArmResult(
        arm.overlay,
        base.overlay,
        differences(numbers, plain),
        [c.temperature for c in cooled],
        control,
        longer.overlay if longer else None,
        differences(numbers, as_long) if longer else [],
        sample(ours[0], theirs[0]),
        _cost(ours[0]),
    )


def _cost(run: Path) -> float | None:
    """What its updates cost, where that can be counted."""
    try:
        return times_plain_run(read_yaml(run / CONFIG))
    except ConfigError:
        return None


def _cooled(run: Path, base: Path, ntp_loss: float) -> Cooled:
    """The control of one run; what was measured before is read again."""
    file = run / _COOLED
    if file.is_file():
        found = read_record(file, Cooled)
        if found.base == base.name:
            return found
    baseline = _baseline(base)
    temperature = baseline.temperature_of(ntp_loss)
    made = Cooled(base.name, temperature, baseline.measured_at(temperature))
    write_json(file, made)
    return made


def _baseline(run: Path) -> Baseline:
    if run not in _opened:
        _opened.clear()  # one model at a time
        module, data, trainer = open_run(run)
        _opened[run] = Baseline(
            module.policy,
            module.yardstick,
            module.refine_step,
            module.validation,
            data.val_dataloader,
            module.sizes.microbatch,
            trainer.precision_plugin.forward_context,
        )
    return _opened[run]
