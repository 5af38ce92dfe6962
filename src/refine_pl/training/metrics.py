"""Looking scalars up in ``metric_table.py``, and showing their values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from refine_pl.training.metric_table import GROUPS, Metric

STAGE = "run/stage"


def metrics() -> Iterator[Metric]:
    """All scalars, in order."""
    for group in GROUPS.values():
        yield from group


def metric_of(scalar: str) -> Metric | None:
    """What is known about a scalar; an exact name comes before one with ``<name>`` in it."""
    found = [metric for metric in metrics() if metric.matches(scalar)]
    return min(found, key=lambda metric: "<name>" in metric.name, default=None)


def format_value(scalar: str, value: float | None) -> str:
    """A value in the format of its scalar; a dash where there is none."""
    if value is None:
        return "–"
    metric = metric_of(scalar)
    text = (metric.form if metric else "{:.4g}").format(value)
    return text.removeprefix("-") if not text.strip("-0.%") else text


def title_of(scalar: str) -> str:
    """What a scalar is called in tables, with its unit."""
    metric = metric_of(scalar)
    if metric is None:
        return scalar
    if metric.name == "val/reward_<name>":
        return f"reward {scalar.removeprefix('val/reward_')}"
    title = metric.title
    if "<name>" in title:
        before, after = metric.name.split("<name>")
        title = title.replace("<name>", scalar.removeprefix(before).removesuffix(after))
    return title + (f", {metric.unit}" if metric.unit not in ("", "share") else "")


def closing_names(scalars: Iterable[str]) -> list[str]:
    """Those of ``scalars`` that belong in a closing table, in the order of ``GROUPS``.

    A single reward is the sum: it is left out.
    """
    known = list(scalars)
    parts = [name for name in known if name.startswith("val/reward_")]
    left_out = parts if len(parts) == 1 else []
    return [
        name
        for metric in metrics()
        if metric.closing
        for name in sorted(known)
        if metric_of(name) is metric and name not in left_out
    ]


def markdown_table(group: str) -> str:
    """The scalars of a group as a Markdown table, for the docs."""
    rows = GROUPS[group]
    advice = any(metric.healthy or metric.otherwise for metric in rows)
    head = ["name", "what, unit", *(["healthy", "otherwise"] if advice else [])]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for metric in rows:
        what = metric.meaning + (f", {metric.unit}" if metric.unit not in ("", "share") else "")
        cells = [f"`{metric.name}`", what]
        cells += [metric.healthy, metric.otherwise] if advice else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
