"""Where an answer may end early: at stop strings, and where its task's rules read no further.

A task's own stop never changes a number that is reported for it: everything after it is ignored by
the released rule and by the further rules of the task. Hence RULER's questions have none, although
their released rule reads one line: the official rule reads all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from refine_pl.evaluation.rules import CUTS
from refine_pl.evaluation.tasks import TASK_RULES, rules_of

End = Callable[[str], int | None]
"""Where the part of a text that counts ends, whatever follows; None: not yet."""


def stop_of(task: str) -> End | None:
    """Where answers of ``task`` may end; None: only at end of text, stop strings and budget."""
    cuts = [CUTS[rule.cut] for rule in rules_of(task)] if task in TASK_RULES else [str]

    def is_over(text: str) -> bool:
        """Whether all rules read one line, and it is whole: nothing is read of a longer text."""
        return all(cut(text) == cut(text + "x") for cut in cuts)

    def end(text: str) -> int | None:
        if not is_over(text):
            return None
        return next(n for n in range(len(text)) if is_over(text[: n + 1]))  # before the newline

    return end if is_over("a\nb") else None


def stop_at(text: str, strings: Sequence[str], end: End | None = None) -> int | None:
    """Where ``text`` is cut: before the first stop string, or where ``end`` says, if earlier.

    Args:
        text: what a model has answered so far.
        strings: stop strings.
        end: the task's own stop, if that counts.
    """
    places = [place for string in strings if (place := text.find(string)) >= 0]
    own = None if end is None else end(text)
    return min(places if own is None else [*places, own], default=None)
