"""What an evaluation run left behind."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refine_pl.evaluation.results import Average, Result
from refine_pl.report.files import Fields, read_json, read_lines

ANSWERS, SCORES, CARD = "answers.jsonl", "scores.json", "card.json"
PREDICTIONS = "predictions.jsonl"  # of refine-pl predict: without references and scores


@dataclass(frozen=True, slots=True)
class Answered:
    """A line of ``answers.jsonl`` or ``predictions.jsonl``."""

    id: str
    task: str  # empty in predictions
    length: int | None  # of the set that the row belongs to, tokens
    output: str
    references: list[str]
    score: float | None  # by the released rule, in [0, 1]; None where nothing scores it
    num_tokens: int
    prompt_tokens: int
    cut_tokens: int  # taken out of the middle of the prompt
    finish: str  # eos, stop or length


@dataclass(slots=True)
class Evaluation:
    """An evaluation run."""

    answers: list[Answered]
    results: list[Result]
    averages: list[Average]
    interval: dict[str, Any]  # level, resamples, method
    card: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def result(self, task: str, length: int | None) -> Result | None:
        """By the released rule, which is the first one."""
        return next((r for r in self.results if (r.task, r.length) == (task, length)), None)

    def places(self) -> list[tuple[str, int | None]]:
        """Tasks and lengths, in the order of the files."""
        scored = [(result.task, result.length) for result in self.results]
        return list(dict.fromkeys(scored + [(row.task, row.length) for row in self.answers]))


def is_evaluation(folder: Path) -> bool:
    """Whether ``folder`` holds what ``refine-pl test`` writes."""
    return any((folder / name).is_file() for name in (ANSWERS, PREDICTIONS, SCORES, CARD))


def read_evaluation(folder: Path) -> Evaluation:
    """Read a run folder.

    Raises:
        DataError: a file is damaged.
    """
    run = Evaluation([], [], [], {}, {})
    for name, read in ((ANSWERS, _answer), (PREDICTIONS, _prediction)):
        if (folder / name).is_file() and not run.answers:
            rows, note = read_lines(folder / name)
            run.notes += [note] if note else []
            run.answers = [read(row) for row in rows]
            _refuse_duplicates(run.answers, folder / name)
    if not any((folder / name).is_file() for name in (ANSWERS, PREDICTIONS)):
        run.notes.append(f"There is no {ANSWERS}: no answers, and no comparison with other runs.")
    if (folder / CARD).is_file():
        run.card = read_json(folder / CARD)
    else:
        run.notes.append(f"There is no {CARD}: model, decoding and data are not known.")
    if (folder / SCORES).is_file():
        scores = read_scores(folder / SCORES)
        run.results, run.averages = scores.results, scores.averages
        run.interval = scores.interval
        if "finished" in run.card and run.card["finished"] is None:
            run.notes.append("The evaluation did not end: scores are of the rows answered so far.")
        if run.answers and scores.rows != len(run.answers):
            run.notes.append(
                f"{SCORES} is about {scores.rows:,} rows, {ANSWERS} has {len(run.answers):,}: the "
                "two files are not of the same evaluation."
            )
    elif any(row.score is not None for row in run.answers):
        run.notes.append(
            f"There is no {SCORES}: the evaluation did not end. {len(run.answers):,} rows are "
            "answered; start it again with the same folder to go on."
        )
    return run


@dataclass(frozen=True, slots=True)
class ScoreFile:
    """A ``scores.json``."""

    rows: int
    results: list[Result]
    averages: list[Average]
    interval: dict[str, Any]


def read_scores(file: Path) -> ScoreFile:
    """Read a ``scores.json``; a :class:`DataError` if it is damaged."""
    scores = Fields(read_json(file), str(file))
    results = [
        Result(
            result.get("task", str),
            result.get("length", int, type(None)),
            result.get("rule", str),
            result.get("rows", int),
            *(result.number(name) for name in ("mean", "low", "high")),
        )
        for result in scores.objects("results")
    ]
    averages = [
        Average(
            average.get("name", str),
            average.get("tasks", int),
            average.get("rows", int),
            *(average.number(name) for name in ("mean", "low", "high")),
        )
        for average in (scores.objects("averages") if "averages" in scores.values else [])
    ]
    interval = scores.get("interval", dict, type(None)) or {}
    return ScoreFile(scores.get("rows", int), results, averages, interval)


def _answer(row: Fields) -> Answered:
    score = row.get("score", int, float, type(None))
    references = row.get("references", list)
    if any(not isinstance(reference, str) for reference in references):
        raise row.error("references holds something that is no text")
    if score is not None and not 0 <= score <= 1:
        raise row.error(f"score is {score}", "0 to 1")
    return replace(
        _prediction(row),
        task=row.get("task", str),
        length=row.get("length", int, type(None)),
        references=references,
        score=None if score is None else float(score),
    )


def _prediction(row: Fields) -> Answered:
    return Answered(
        row.get("id", str),
        "",
        None,
        row.get("output", str),
        [],
        None,
        row.get("num_tokens", int),
        row.get("prompt_tokens", int),
        row.get("cut_tokens", int),
        row.get("finish", str),
    )


def _refuse_duplicates(answers: list[Answered], file: Path) -> None:
    seen: set[str] = set()
    for answer in answers:
        if answer.id in seen:
            raise Fields({}, str(file)).error(f"the row {answer.id!r} is there twice")
        seen.add(answer.id)
