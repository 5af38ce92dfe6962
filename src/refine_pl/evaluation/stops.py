"""Where an answer may end early: at stop strings, and where a task's rules read no further.

A task's own stop never changes a number that is reported for it: everything after it is ignored by
the released rule and by the further rules of the task. Hence RULER's questions have none, although
their released rule reads one line: the official rule reads all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from refine_pl.evaluation.tasks import RULES, TASK_RULES, Rule, rules_of

_CODE_MARKS = ("`", "#", "//")

End = Callable[[str], int | None]
"""Where the part of a text that counts ends, whatever follows; None: not yet."""


def first_line(text: str) -> int | None:
    """The end of the first line, which may be empty."""
    end = text.find("\n")
    return None if end < 0 else end


def first_line_after_newlines(text: str) -> int | None:
    """The end of the first line after leading newlines."""
    end = text.find("\n", len(text) - len(text.lstrip("\n")))
    return None if end < 0 else end


def first_line_of_code(text: str) -> int | None:
    """The end of the first line, after leading newlines, without a backtick, ``#`` or ``//``."""
    start = len(text) - len(text.lstrip("\n"))
    while (end := text.find("\n", start)) >= 0:
        if not any(mark in text[start:end] for mark in _CODE_MARKS):
            return end
        start = end + 1
    return None


STOPS_BY_CUT: dict[str, End] = {
    "first_line": first_line,
    "first_line_cleaned": first_line,
    "first_line_after_newlines": first_line_after_newlines,
}
"""By what a rule cuts off an output first. Rules that read all of it are not here."""


def stop_of(task: str) -> End | None:
    """Where answers of ``task`` may end; None: only at end of text, stop strings and budget."""
    ends = {_stop_of_rule(rule) for rule in rules_of(task)} if task in TASK_RULES else {None}
    return ends.pop() if len(ends) == 1 else None


def _stop_of_rule(rule: Rule) -> End | None:
    if rule.cut == "whole" and rule.compare is RULES["code_similarity"].compare:
        return first_line_of_code
    return STOPS_BY_CUT.get(rule.cut)


def stop_at(text: str, strings: Sequence[str], end: End | None = None) -> int | None:
    """Where ``text`` is cut: before the first stop string, or where ``end`` says, if earlier.

    Args:
        text: what a model has answered so far.
        strings: stop strings.
        end: the task's own stop, if that counts.
    """
    places = [text.find(string) for string in strings]
    own = None if end is None else end(text)
    places.append(-1 if own is None else own)
    return min((place for place in places if place >= 0), default=None)
