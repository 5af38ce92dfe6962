"""A comparison in a terminal, 80 columns wide."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from refine_pl.comparison.records import ArmResult, Comparison, Sample
from refine_pl.comparison.words import arm_name, rows, title, verdict, what_it_is

_SHOWN = 44  # characters of a text
_NAME = 8  # of the name of a column


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """The tables of all arms, one rollout of each, and what it all says.

    Args:
        comparison: what was found.
        console: where to print; standard output if left out.
    """
    console = console or Console(highlight=False)
    for result in comparison.arms:
        console.print(comparison_table(result, comparison))
        if result.sample is not None:
            console.print(sample_table(result, result.sample))
    for result in comparison.arms:
        console.print(escape(verdict(result, len(comparison.seeds))))
    console.print(escape(what_it_is(comparison)))


def comparison_table(result: ArmResult, comparison: Comparison) -> Table:
    """*arm | plain training | difference with its interval*."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="bold")
    table.title = escape(title(result, comparison))
    name = arm_name(result.arm)
    table.add_column("held out", min_width=26)
    table.add_column(escape(name) if len(name) <= _NAME else "arm", justify="right")
    table.add_column(escape(arm_name(result.base)), justify="right")
    table.add_column("difference [95%]", justify="right", no_wrap=True)
    for row in rows(result):
        table.add_row(*map(escape, row))
    return table


def sample_table(result: ArmResult, sample: Sample) -> Table:
    """A rollout before and after, beside the true text."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column(min_width=14)
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_row("text", escape(f"...{_visible(sample.prefix)[-_SHOWN:]}"))
    table.add_row("goes on with", escape(_visible(sample.target)))
    table.add_row("before", escape(_visible(sample.before)))
    name = arm_name(result.arm)
    name = name if len(name) <= _NAME else "arm"
    table.add_row(escape(f"{name}, after"), escape(_visible(sample.arm)))
    table.add_row(f"{arm_name(result.base)}, after", escape(_visible(sample.base)))
    return table


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() else {"\n": "⏎", "\t": "⇥"}.get(c, "\ufffd") for c in text)
