"""The progress bar at every width: count, time and words are whole."""

import io
import re

import pytest
from rich.console import Console

from refine_pl.callbacks.bars import Bars

WORDS = ["loss 2.4400", "reward 0.512", "tokens/s 12,345"]


@pytest.mark.parametrize("label", ["refine", "a stage with quite a long name of its own"])
@pytest.mark.parametrize("width", [64, 72, 80, 100, 120, 200])
def test_nothing_is_lost(width, label):
    bars = Bars(Console(width=width, force_terminal=True, file=io.StringIO()))
    bars.show(bars.add("training", 10_000, 0), label, 1234, WORDS)
    paper = Console(width=width, file=io.StringIO(), color_system=None)
    for part in bars.get_renderables():
        paper.print(part)
    lines = [line.rstrip() for line in paper.file.getvalue().splitlines()]
    assert all(len(line) <= width for line in lines)
    assert "1234/10000" in lines[0]
    assert len(re.findall(r"\d:\d\d:\d\d left -:--:--", lines[0])) == 1
    assert label[:12] in lines[0]
    assert "  ".join(WORDS) in "\n".join(lines)
    assert len(lines) == 1 or width < 130
