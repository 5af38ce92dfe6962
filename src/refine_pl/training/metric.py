"""What is said of one scalar of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PERCENT = "{:.2%}"


@dataclass(frozen=True, slots=True)
class Metric:
    """A scalar. ``<name>`` in its name stands for a reward, or for another part that is named."""

    name: str
    title: str  # in tables and figures
    meaning: str  # one line, for the docs
    unit: str = ""
    form: str = "{:.4f}"  # of a value
    healthy: str = ""  # what it should do
    otherwise: str = ""  # what to try if it does not
    bar: str = ""  # its label on the progress bar; empty: it is not there
    bar_form: str = "{:.3f}"
    of_answers: bool = False  # on the bar only where the batch had answers
    closing: bool = False  # in the table at the end of a run, and in that of a sweep
    curve: bool = True  # has a figure of its own in a report
    if_changing: bool = False  # nearly always a straight line: its figure is drawn when it is not
    spread: str = ""  # the scalar that is drawn as a band around it
    lower_is_better: bool = False  # in comparisons
    exact: bool = False  # drawn as it is: a mean over time would say something else

    def matches(self, scalar: str) -> bool:
        """Whether ``scalar`` is this one."""
        pattern = re.escape(self.name).replace("<name>", "[^/]+")
        return re.fullmatch(pattern, scalar) is not None


def share(name: str, title: str, meaning: str, **others: object) -> Metric:
    """A scalar between 0 and 1, shown as a percentage."""
    return Metric(name, title, meaning, "share", _PERCENT, **others)  # type: ignore[arg-type]


def seconds(part: str, title: str, meaning: str, otherwise: str = "") -> Metric:
    """The seconds of a part of an iteration."""
    return Metric(f"time/{part}_s", title, meaning, "seconds", otherwise=otherwise)
