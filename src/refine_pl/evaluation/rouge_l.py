"""ROUGE-L F as the package ``rouge`` 1.0.1 computes it, and 0 where that package raises.

The package walks each pair of sentences (parted at full stops) by recursion, one frame a word, and
so raises for a pair of more than about a thousand words. How many words that are would depend on
how deep the caller is and on the interpreter's limit; here it is always the same number.
"""

from __future__ import annotations

import sys
import threading

# Python's own recursion limit: what a script of a few frames that calls the package has.
_FRAMES = 1000


def rouge_l(output: str, reference: str) -> float:
    """F = 2PR / (P + R + 1e-8) of the union of longest common subsequences, in [0, 1].

    ``P`` and ``R`` divide by the number of *different* words of the output and of the reference;
    case and punctuation count. A perfect output therefore scores 0.999999995, not 1. An output or
    a reference without a sentence (empty, or full stops alone), or a pair of sentences too long
    for the package's recursion, scores 0.
    """
    from rouge import Rouge  # outside of the thread: a missing package is not a score of 0

    scorer = Rouge(metrics=["rouge-l"], stats=["f"])
    result: list[float] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(_below(sys.getrecursionlimit() - _FRAMES, scorer, output, reference))
        except (ValueError, RecursionError):
            result.append(0.0)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="rouge-l")  # a new thread has a stack of its own
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def _below(frames: int, scorer: object, output: str, reference: str) -> float:
    """Score with ``frames`` more frames on the stack, which leaves as many as there always are."""
    if frames > 0:
        return _below(frames - 1, scorer, output, reference)
    scores = scorer.get_scores([output], [reference], avg=True)  # type: ignore[attr-defined]
    return float(scores["rouge-l"]["f"])
