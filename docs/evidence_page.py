"""Tables and plot of the page on evidence, from the numbers of its comparison.

    refine-pl compare --config tiny_compare --from tiny --jobs 2 --arms refine evidence \
        --compute_matched refine --seeds 0 1 2 --out runs/evidence
    python docs/evidence_page.py runs/evidence/comparison.json

keeps the numbers as ``docs/evidence.json`` and rewrites what stands between the marks of
``docs/evidence.md``; without an argument, from the numbers that were kept.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from refine_pl.comparison.records import Comparison, Difference
from refine_pl.comparison.words import MATCH, arm_name, change
from refine_pl.figures.drawing import LIGHT, Picture
from refine_pl.figures.plots import Interval, interval_figure
from refine_pl.figures.text import markdown_table
from refine_pl.training.record_files import read_record, write_json

DOCS = Path(__file__).parent
KEPT, PAGE, PLOT = DOCS / "evidence.json", DOCS / "evidence.md", DOCS / "images" / "evidence.png"
FIRST = f"{MATCH}_5"
_MARKED = re.compile(r"(<!-- (\w+): by evidence_page.py -->\n).*?(<!-- end -->)", re.DOTALL)


def trained(found: Comparison) -> str:
    """What each arm changes beside plain training."""
    columns = ["arm", "cost of an update", "exact match, 16 bytes", "first 5 bytes"]
    columns += ["next-token loss", "greedy accuracy", "similarity, frozen start"]
    names = [MATCH, FIRST, "val/ntp_loss", "val/accuracy", "val/similarity"]
    lines = []
    for arm in found.arms:
        cost = f"{arm.cost:.2f}" if arm.cost else "-"
        lines.append([arm_name(arm.arm), cost, *(_told(arm.measures, name) for name in names)])
    return _table(columns, lines)


def beyond(found: Comparison) -> str:
    """What is left of the exact match beside plain training at a lower temperature."""
    columns = ["arm", "temperature of SFT", "16 bytes", "by seed", "first 5 bytes"]
    lines = []
    for arm in found.arms:
        by_seed = ", ".join(f"{100 * value:+.2f}" for value in _of(arm.control, MATCH).by_seed)
        at = f"{statistics.fmean(arm.temperatures):.3f}"
        told = [_told(arm.control, name) for name in (MATCH, FIRST)]
        lines.append([arm_name(arm.arm), at, told[0], by_seed, told[1]])
    return _table(columns, lines)


def longer(found: Comparison) -> str:
    """What is left beside plain training that costs as much."""
    names = [MATCH, "val/ntp_loss"]
    matched = [arm for arm in found.arms if arm.longer]
    lines = [
        [arm_name(arm.arm), f"{arm.cost:.2f}", *(_told(arm.longer_measures, n) for n in names)]
        for arm in matched
    ]
    return _table(["arm", "times the steps", "exact match, 16 bytes", "next-token loss"], lines)


def picture(found: Comparison) -> Picture:
    """Exact match of each arm against plain training, as it is and at equal next-token loss."""
    intervals = []
    for row, arm in enumerate(found.arms):
        against = ("against SFT", arm.measures), ("at equal next-token loss", arm.control)
        for run, (label, measures) in enumerate(against):
            m = _of(measures, MATCH)
            numbers = (100 * value for value in (m.difference, m.low, m.high))
            intervals.append(Interval(row, run, label, *numbers))
    options = {"rows": [arm_name(arm.arm) for arm in found.arms], "intervals": intervals}
    options |= {"x": "exact match of 16 bytes, percentage points", "zero": True}
    return Picture("evidence", "exact match of each arm beside SFT", interval_figure, options)


def page(text: str, found: Comparison) -> str:
    """The page with the tables of a comparison."""
    tables = {"trained": trained, "beyond": beyond, "longer": longer}

    def made(mark: re.Match[str]) -> str:
        return f"{mark[1]}\n{tables[mark[2]](found)}\n\n{mark[3]}"

    return _MARKED.sub(made, text)


def kept(found: Comparison) -> Comparison:
    """The numbers without rollouts: the text of these is that of its authors."""
    arms = [dataclasses.replace(arm, sample=None) for arm in found.arms]
    return dataclasses.replace(found, arms=arms)


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(markdown_table(columns, lines, 1))


def _of(measures: Sequence[Difference], name: str) -> Difference:
    return next(measure for measure in measures if measure.name == name)


def _told(measures: Sequence[Difference], name: str) -> str:
    measure = _of(measures, name)
    return f"**{change(measure)}**" if measure.sign else change(measure)


def main(arguments: Sequence[str]) -> None:
    """Keep the numbers of a comparison, and make the page and its plot of them."""
    if arguments:
        write_json(KEPT, kept(read_record(Path(arguments[0]), Comparison)))
    found = read_record(KEPT, Comparison)
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    PLOT.write_bytes(picture(found).png(LIGHT))


if __name__ == "__main__":
    main(sys.argv[1:])
