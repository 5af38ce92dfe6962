"""The numbers of the paper (arXiv 2602.16704), percent, to be read beside one's own.

They were measured with the released 760M and 1.3B checkpoints on a fixed set of rows, by the rules
that this project calls released ones. A stage that is not named was left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import yaml

SOURCE = "arXiv 2602.16704"

Place = tuple[str, int | None]  # task and length in tokens; None: no such sets

LONGBENCH = (
    *("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "qmsum"),
    *("multi_news", "samsum", "trec", "triviaqa", "lcc", "repobench-p"),
)
AVERAGE = "average of 12 tasks"  # stands for a task
_LENGTHS = (4096, 8192, 16384)


@dataclass(frozen=True, slots=True)
class PaperTable:
    """A table of the paper."""

    name: str
    about: str  # rows and metric
    places: tuple[Place, ...]  # its columns
    scores: dict[str, dict[str, dict[Place, float]]]  # by model, then by the stage of training


def _table(name: str, about: str, places: tuple[Place, ...], text: str) -> PaperTable:
    """``text`` is YAML: models, their stages, and for each the numbers of all places."""
    scores = {
        model: {
            stage: dict(zip(places, map(float, values.split()), strict=True))
            for stage, values in stages.items()
        }
        for model, stages in yaml.safe_load(text).items()
    }
    return PaperTable(name, about, places, scores)


NIAH = _table(
    "RULER needle in a haystack",
    "500 rows per length, recall",
    tuple(
        (f"niah_{kind}", length)
        for kind in ("single", "multi_key", "multi_query", "multi_value")
        for length in _LENGTHS
    ),
    """
    LaCT-760M:
      as published: 98.8 91.2 95.8 70.2 44.8 24.2 39.2 24.9 17.4 40.6 27.0 17.7
      SFT mid:      98.4 90.8 97.6 70.6 45.0 24.2 40.7 25.2 17.4 41.7 26.3 17.7
      ReFINE mid:   99.0 93.0 96.8 70.4 46.0 26.6 40.5 25.8 18.0 41.2 29.5 18.6
    DeltaNet-1.3B:
      as published:  100  100  100 23.6 17.8  3.4 27.7  3.9  1.8 23.9  5.4  2.0
      SFT mid:       100  100  100 23.8 19.2  7.8 33.2 16.8  3.5 28.3 19.3  3.7
      ReFINE mid:    100  100 99.8 25.0 21.4  8.8 37.3 18.8  3.6 29.0 20.4  4.0
    """,
)

QA = _table(
    "RULER multi-document QA",
    "200 rows per length",
    tuple((task, length) for task in ("ruler_squadqa", "ruler_hotpotqa") for length in _LENGTHS),
    """
    LaCT-760M:
      as published:                               17.5 14.0  6.5 20.5 14.5 12.0
      SFT mid:                                    19.5 14.0  6.0 21.5 15.0 12.0
      ReFINE mid:                                 20.5 15.5  8.0 23.0 16.0 12.5
      ReFINE mid, SFT post:                       30.5 20.0  7.5 25.0 16.5 11.5
      ReFINE mid, nested SFT post:                38.0 20.0  7.5 24.0 16.0 12.5
      ReFINE mid, nested ReFINE post:             43.5 24.5  8.5 27.0 19.5 13.0
      ReFINE mid, nested ReFINE post, SFT TTT:    43.5 21.5  8.5 26.5 24.0 13.0
      ReFINE mid, nested ReFINE post, ReFINE TTT: 45.5 25.5 10.0 28.5 25.5 15.0
    DeltaNet-1.3B:
      as published:                               11.0  5.0  2.0 10.0  3.0  2.5
      SFT mid:                                     9.0  6.0  3.0  9.0  8.0  4.5
      ReFINE mid:                                 10.0  6.5  4.0 12.0  9.5  5.5
      ReFINE mid, SFT post:                       11.0  7.0  5.0 14.0 11.0  6.5
      ReFINE mid, nested SFT post:                12.0  8.0  5.0 16.5 10.0  7.5
      ReFINE mid, nested ReFINE post:             14.0 10.5  6.5 15.0 11.0  8.5
      ReFINE mid, nested ReFINE post, SFT TTT:    16.5 10.5  6.5 16.0 10.5  6.5
      ReFINE mid, nested ReFINE post, ReFINE TTT: 17.5 12.5  7.0 18.0 13.5  8.0
    """,
)

LONG_BENCH = _table(
    "LongBench",
    "12 tasks, up to 16K tokens",
    tuple((task, None) for task in (AVERAGE, *LONGBENCH)),
    """
    LaCT-760M:
      as published:           13.1  6.5 10.5  7.2 11.7  9.8 13.6  9.2 14.2 10.5  8.0 26.7 29.7
      SFT mid:                13.5  5.8 10.1  7.4 12.6  9.2 13.1 10.5 13.8  7.5 12.2 29.8 30.1
      ReFINE mid:             16.9  6.5 11.1 12.6 19.6 18.0 14.3 15.9 17.0 11.0 12.9 32.9 31.1
      ReFINE mid, SFT TTT:    17.0  5.1 12.6 13.5 15.9 18.4 13.2 16.2 17.4 12.5 16.2 32.0 31.4
      ReFINE mid, ReFINE TTT: 18.0  6.7 14.5 14.1 18.4 22.8 13.9 15.9 17.4 15.5 11.8 32.2 32.3
    DeltaNet-1.3B:
      as published:           14.2  6.5  8.7 10.0  4.8  6.4 12.4 16.3  9.4 17.7 15.1 33.8 29.0
      SFT mid:                15.7  5.7  9.4  8.3  9.2  8.6 14.7 16.1 15.5 22.9 15.2 33.1 29.2
      ReFINE mid:             17.0  6.5  9.5 10.1  9.6  8.7 15.2 15.0 16.2 25.0 21.4 35.9 31.1
      ReFINE mid, SFT TTT:    16.5  7.2  9.6 10.5  6.8  7.2 14.9 16.2 17.3 28.0 16.6 34.1 29.2
      ReFINE mid, ReFINE TTT: 17.9  7.5  9.2 11.5  9.5  8.6 14.7 16.1 16.5 31.5 24.7 35.2 30.0
    """,
)

TABLES = (NIAH, QA, LONG_BENCH)

ABLATION_MODELS = ("LaCT-760M", "DeltaNet-1.3B")
ABLATIONS: dict[str, dict[str, tuple[float, float]]] = {
    "reward": {
        "exact match": (16.6, 16.5),
        "embedding similarity": (16.9, 17.0),
    },
    "selection": {
        "uniform": (16.2, 15.9),
        "argmax entropy": (16.4, 16.7),
        "argmin entropy": (16.6, 16.8),
        "entropy-weighted": (16.9, 17.0),
    },
    "num_segments": {
        "2": (16.5, 16.3),
        "8": (16.9, 17.0),
    },
}
"""LongBench average after mid-training by setting, for both models; by the group of the overlays
(the paper's Tables 6 and 7 and Figure 5)."""

BEST_ROLLOUT_LENGTH = "The paper found 5 the best rollout length of 1, 3, 5 and 7."
