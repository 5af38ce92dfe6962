"""A comparison in words, and its numbers as people read them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence

from refine_pl.comparison.records import ArmResult, Comparison, Difference
from refine_pl.training.metrics import format_value, metric_of, title_of

MATCH = "val/expected_match"
_SHORT = {
    MATCH: "exact match",
    "val/exact_match": "exact match, sampled",
    "val/ntp_loss": "next-token loss, nats",
    "val/accuracy": "greedy accuracy",
    "val/greedy_run": "greedy run, tokens",
    "val/similarity": "similarity, frozen model",
}
WHAT_IT_IS = (
    "The difference is one of training: same start, data, steps and measured places. Its interval "
    "is over held-out documents{seeds}; it says nothing of other models, data or sizes. What "
    "remains against SFT at the temperature of equal next-token loss is not mere sharpening, which "
    "a lower sampling temperature gives for nothing."
)


def what_it_is(comparison: Comparison) -> str:
    """What the differences are, and what they are not."""
    several = len(comparison.seeds) > 1
    seeds = (
        f" and {len(comparison.seeds)} seeds"
        if several
        else ", not over seeds, of which another can turn it"
    )
    return WHAT_IT_IS.format(seeds=seeds)


def short(name: str) -> str:
    """What a measure is called in a comparison."""
    first = re.fullmatch(rf"{MATCH}_(\d+)", name)
    if first:
        number = int(first[1])
        return f"exact match, first {number} token{'s' if number > 1 else ''}"
    return _SHORT.get(name, title_of(name))


def arm_name(arm: str) -> str:
    """What an arm is called in a sentence and above a column."""
    return {"refine": "ReFINE", "sft": "SFT"}.get(arm, arm)


def led(measures: Sequence[Difference]) -> list[Difference]:
    """The measures, the exact match first."""
    return sorted(measures, key=lambda m: not m.name.startswith((MATCH, "val/exact_match")))


def change(measure: Difference, unit: bool = False) -> str:
    """``+1.39 [+1.26, +1.51]``: percentage points of a share, else the measure's own unit."""
    share = _is_share(measure)
    numbers = (measure.difference, measure.low, measure.high)
    digits = 2 if share else 4 if "loss" in measure.name or "similarity" in measure.name else 3
    middle, low, high = (f"{(100 if share else 1) * value:+.{digits}f}" for value in numbers)
    return f"{middle}{' points' if share and unit else ''} [{low}, {high}]"


def _is_share(measure: Difference) -> bool:
    metric = metric_of(measure.name)
    return metric is not None and metric.unit == "share"


def rows(result: ArmResult) -> Iterator[tuple[str, str, str, str]]:
    """Measure, arm, plain training and difference, led by the exact match with its controls."""
    cooled = {m.name: m for m in result.control if m.name.startswith(MATCH)}
    longer = {m.name: m for m in result.longer_measures if m.name in (MATCH, "val/ntp_loss")}
    base = arm_name(result.base)
    for measure in led(result.measures):
        yield _row(short(measure.name), measure)
        if measure.name in cooled:
            at = statistics.fmean(result.temperatures)
            yield _row(f"  {base} at temperature {at:.2f}", cooled[measure.name])
        if measure.name in longer:
            yield _row(f"  {base}, as much computing", longer[measure.name])


def title(result: ArmResult, comparison: Comparison) -> str:
    """What a table is about."""
    seeds = len(comparison.seeds)
    over = f"{comparison.documents} held-out documents" + (f", {seeds} seeds" if seeds > 1 else "")
    return f"{arm_name(result.arm)} against {arm_name(result.base)}, {over}"


def _row(title: str, measure: Difference) -> tuple[str, str, str, str]:
    arm, base = (format_value(measure.name, value) for value in (measure.arm, measure.base))
    return title, arm, base, change(measure)


def verdict(result: ArmResult, seeds: int) -> str:
    """What an arm does and does not do, in a sentence or three.

    Args:
        result: of the arm.
        seeds: how many there are.
    """
    found = {m.name: m for m in result.measures}
    arm, base = arm_name(result.arm), arm_name(result.base)
    text = f"{arm} {_against(found.get(MATCH), f'step-matched {base}', 'exact match', seeds)}"
    ntp = found.get("val/ntp_loss")
    if ntp is not None:
        text += f"; the next-token loss {_moved(ntp)}"
    greedy = found.get("val/accuracy")
    if greedy is not None:
        text += f"; the greedy accuracy {_moved(greedy)}"
    text += "."
    control = next((m for m in result.control if m.name == MATCH), None)
    if control is not None:
        at = ", ".join(f"{t:.2f}" for t in result.temperatures)
        text += f" Beyond temperature ({base} at {at}, equal next-token loss): "
        text += f"{_beyond(control)}."
    longer = next((m for m in result.longer_measures if m.name == MATCH), None)
    if longer is not None:
        cost = f" ({result.cost:.2f} times the steps)" if result.cost else ""
        other = f"{base} with as much computing{cost}"
        text += f" {arm} {_against(longer, other, 'exact match', seeds)}."
    return text


def _against(measure: Difference | None, other: str, what: str, seeds: int) -> str:
    if measure is None:
        return f"was not measured against {other} in {what}"
    if not measure.sign:
        return f"and {other} do not differ in {what}: {change(measure, True)}"
    signs = {value > 0 for value in measure.by_seed}
    every = f", in every one of {seeds} seeds" if seeds > 1 and len(signs) == 1 else ""
    beats = "beats" if measure.sign > 0 else "is worse than"
    return f"{beats} {other} in {what} by {change(measure, True)}{every}"


def _moved(measure: Difference) -> str:
    if not measure.sign:
        return f"does not differ ({change(measure, True)})"
    word = "higher" if measure.sign > 0 else "lower"
    return f"is {word} ({change(measure, True)})"


def _beyond(measure: Difference) -> str:
    if not measure.sign:
        return f"no difference, {change(measure, True)}"
    word = "a gain of" if measure.sign > 0 else "a loss of"
    return f"{word} {change(measure, True)}"
