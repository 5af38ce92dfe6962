"""The arms of a comparison: the recipe itself, overlays, and plain training beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from refine_pl.comparison.cost import longer_options
from refine_pl.errors import ConfigError, did_you_mean
from refine_pl.sweep.overlays import find_overlays
from refine_pl.training.run_folder import SweepOverlay, stages_of

RECIPE = "refine"  # the arm that is the recipe itself
BASELINE = "baseline"  # the group of plain training
_WEIGHTS = ("policy_weight", "kl_weight")
_SHARED = ("model.validation", "data.", "model.pretrained", "model.backbone")


def find_arms(words: Sequence[str], recipe: str) -> list[SweepOverlay]:
    """The arms that are asked for, in their order; plain training is there without being named.

    Args:
        words: ``refine``, ``sft``, files and folders.
        recipe: the configuration that they are put on.

    Raises:
        ConfigError: there is no such file, or none but plain training.
    """
    arms: dict[str, SweepOverlay] = {}
    for word in words:
        if word == "sft":
            continue
        if word == RECIPE:
            found = [SweepOverlay(RECIPE, "base", None)]
        else:
            found = find_overlays([word], recipe, with_base=False)
        for arm in found:
            if any(arm.overlay == other.overlay for other in arms.values()):
                raise ConfigError(
                    f"two arms are called {arm.overlay}", where="--arms", way_out="rename one"
                )
            arms[arm.label] = arm
    if not arms:
        raise ConfigError("there is no arm beside sft", where="--arms", allowed="refine, overlays")
    return list(arms.values())


def baseline_options(recipe: Mapping[str, Any]) -> list[str]:
    """Options that make a recipe plain next-token training, with as many steps.

    Args:
        recipe: its settings.

    Raises:
        ConfigError: a stage ramps a weight, so that it would have rollouts.
    """
    return list(_baseline(recipe))


def _baseline(recipe: Mapping[str, Any]) -> Iterator[str]:
    stages = stages_of(recipe)
    for weight in _WEIGHTS:
        if not stages or any(stage.get(weight) is None for stage in stages.values()):
            yield from (f"--model.{weight}", "0")
        for name, stage in stages.items():
            if weight in (stage.get("ramp") or {}):
                raise ConfigError(
                    f"stage {name} ramps {weight}, so the recipe has no plain counterpart",
                    where=f"schedule.stages.{name}.ramp",
                    way_out=f"a constant {weight}",
                )
            if stage.get(weight):
                yield from (f"--schedule.stages.{name}.{weight}", "0")
    yield from ("--model.steps", "per_minibatch")


def to_match(names: Sequence[str] | None, arms: Sequence[SweepOverlay]) -> list[SweepOverlay]:
    """The arms that plain training with as much computing is wanted for.

    Args:
        names: of arms; none for all of them. None if it is not wanted at all.
        arms: all of them.

    Raises:
        ConfigError: an arm that is not there.
    """
    known = {arm.overlay: arm for arm in arms}
    for name in names or ():
        if name not in known:
            raise ConfigError(
                f"there is no arm {name} whose computing could be matched",
                where="--compute_matched",
                allowed=", ".join(known),
                way_out=did_you_mean(name, [*known]),
            )
    return [] if names is None else [known[name] for name in names or known]


def longer_arm(arm: SweepOverlay, settings: Mapping[str, Any], base: SweepOverlay) -> SweepOverlay:
    """Plain training with as much computing as an arm.

    Args:
        arm: the arm.
        settings: all of the arm's.
        base: plain training with as many steps.
    """
    longer = SweepOverlay(f"sft_for_{arm.overlay}", BASELINE, None)
    longer.options = [*base.options, *longer_options(settings)]
    return longer


def check_measured_alike(overlays: Sequence[SweepOverlay]) -> None:
    """Refuse an arm that changes what is compared, or what arms have in common.

    Raises:
        ConfigError: naming the setting.
    """
    for overlay in overlays:
        for key in overlay.changes:
            if key.startswith(_SHARED):
                raise ConfigError(
                    f"{overlay.overlay} changes {key}, so it could not be compared with the others",
                    where=overlay.file or "--arms",
                    allowed="the same start, data and validation in every arm",
                    way_out=f"set {key} in the recipe, or after --, for all arms",
                )
