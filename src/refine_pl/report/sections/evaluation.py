"""Scores of evaluation runs, beside the paper's where task and length are the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from refine_pl.report import paper
from refine_pl.report.answers import Average, Evaluation, Result
from refine_pl.report.drawing import Picture
from refine_pl.report.figures import Interval, interval_figure
from refine_pl.report.page import (
    Block,
    Cell,
    Details,
    Gallery,
    Heading,
    Note,
    Paragraph,
    Row,
    Section,
    Table,
)
from refine_pl.report.runs import Run
from refine_pl.report.text import shortened, visible

_ANSWERS = 6  # of a run
_TEXT = 240  # characters of an answer

Scored = list[tuple[Run, Evaluation]]


def evaluation_section(runs: Sequence[Run]) -> Section | None:
    """The scores, the paper's tables, how answers ended, and some answers."""
    some = [(run, run.evaluation) for run in runs if run.evaluation]
    if not some:
        return None
    scored = [(run, evaluation) for run, evaluation in some if evaluation.results]
    blocks: list[Block] = []
    if scored:
        blocks += _scores(scored)
    else:
        blocks.append(Note("No run has scores: there is nothing to compare."))
    for table in paper.TABLES:
        blocks += _beside(table, scored)
    answered = [(run, evaluation) for run, evaluation in some if evaluation.answers]
    if answered:
        blocks += [Heading("How answers ended"), _endings(answered)]
        blocks += [_some_answers(run, evaluation) for run, evaluation in answered]
    return Section("Evaluation", blocks)


def place_name(task: str, length: int | None) -> str:
    """A row of a table: the task, with the length of its set if it has one."""
    return task if length is None else f"{task}, {length:,}"


def _scores(scored: Scored) -> list[Block]:
    places = list(dict.fromkeys(place for _, e in scored for place in e.places()))
    rows: list[Row] = []
    intervals = []
    for task, length in places:
        cells: list[Cell | str] = [place_name(task, length)]
        for run, evaluation in scored:
            result = evaluation.result(task, length)
            if result is None:
                cells.append("–")
                continue
            cells.append(_with_interval(result))
            intervals.append(
                Interval(len(rows), run.index, run.label, result.mean, result.low, result.high)
            )
        rows.append(cells)
    first = len(rows)
    rows += _averages(scored)
    columns: Row = ["task, tokens", *(Cell(run.label, run=run.index) for run, _ in scored)]
    names = [place_name(*place) for place in places]
    draw = partial(interval_figure, rows=names, intervals=intervals, x="score, percent", zero=False)
    picture = Picture("scores", "Scores by task and length with their intervals", draw, wide=True)
    blocks: list[Block] = [
        Paragraph("Percent, by the released rule of each task. " + _about_interval(scored)),
        Table(columns, rows, separated=frozenset({first})),
        Gallery([picture]),
    ]
    further = _further_rules(scored)
    return [*blocks, further] if further else blocks


def _averages(scored: Scored) -> list[Row]:
    """Means over tasks; a column where a run has fewer tasks than the row says stays empty."""
    kinds = dict.fromkeys((a.name, a.tasks) for _, e in scored for a in e.averages)
    rows: list[Row] = []
    for name, tasks in kinds:
        cells: list[Cell | str] = [f"average of {tasks} {name} tasks"]
        for _, evaluation in scored:
            found = [a for a in evaluation.averages if (a.name, a.tasks) == (name, tasks)]
            cells += [_with_interval(a) for a in found[:1]] or ["–"]
        rows.append(cells)
    return rows


def _with_interval(result: Result | Average) -> Cell:
    detail = f"{result.low:.1f} to {result.high:.1f}, {result.rows:,} rows"
    return Cell(f"{result.mean:.1f}", detail)


def _about_interval(scored: Scored) -> str:
    about = scored[0][1].interval
    level, resamples = about.get("level"), about.get("resamples")
    words = f"{level:.0%} " if isinstance(level, float) else ""
    draws = f", {resamples:,} resamples" if isinstance(resamples, int) else ""
    return (
        f"Behind each mean its {words}interval ({about.get('method', 'method not given')}{draws}): "
        "how much the mean depends on which rows were asked, and on nothing else."
    )


def _further_rules(scored: Scored) -> Details | None:
    rows: list[Row] = [
        [
            place_name(result.task, result.length),
            result.rule,
            Cell(run.label, run=run.index),
            Cell(f"{result.mean:.1f}", f"{result.low:.1f} to {result.high:.1f}"),
        ]
        for run, evaluation in scored
        for result in evaluation.results
        if result is not evaluation.result(result.task, result.length)
    ]
    if not rows:
        return None
    table = Table(["task, tokens", "rule", "run", "score"], rows, text_columns=3)
    return Details("Scores by further rules", [table])


def _beside(table: paper.PaperTable, scored: Scored) -> list[Block]:
    """Own rows above the paper's, in the columns that both have."""
    own = [(run, _own_scores(table, evaluation)) for run, evaluation in scored]
    own = [(run, scores) for run, scores in own if scores]
    places = [place for place in table.places() if any(place in scores for _, scores in own)]
    heading = Heading(f"Beside the paper: {table.name}")
    tasks = {task for task, _ in table.places()}
    if not places:
        asked = {(t, n) for _, e in scored for t, n in e.places() if t in tasks}
        if not asked:
            return []
        names = "; ".join(place_name(*place) for place in sorted(asked, key=str))
        lengths = ", ".join(f"{n:,}" for n in sorted({n for _, n in table.places() if n}))
        allowed = f"The paper has {lengths} tokens." if lengths else "Its rows have no length."
        return [heading, Note(f"The paper has no numbers for {names}. {allowed}")]
    rows: list[Row] = [
        [Cell(run.label, run=run.index, strong=True), "own run", *_values(scores, places)]
        for run, scores in own
    ]
    first = len(rows)
    for row in table.rows:
        rows.append([row.model, f"paper: {row.stage}", *_values(row.scores, places)])
    second = next(i for i, row in enumerate(table.rows) if row.model != table.rows[0].model)
    caption = (
        f"{paper.SOURCE}, {table.name}: {table.about}, percent. The paper's rows are other models, "
        "and other rows of the same task; they were copied and not run again."
    )
    columns = ["model", "stage", *(place_name(*place) for place in places)]
    found = [_cut_note(run.label, evaluation, tasks) for run, evaluation in scored]
    beside = Table(columns, rows, caption, 2, frozenset({first, first + second}))
    return [heading, beside, *(note for note in found if note is not None)]


def _cut_note(label: str, evaluation: Evaluation, tasks: set[str]) -> Note | None:
    """That a run read less than the paper's models did."""
    asked = [answer for answer in evaluation.answers if answer.task in tasks]
    cut = sum(answer.cut_tokens > 0 for answer in asked)
    if not cut:
        return None
    return Note(
        f"{label} read {cut:,} of {len(asked):,} prompts without their middle, which exceeded its "
        "limit of tokens: this is not the task at its full length."
    )


def _own_scores(table: paper.PaperTable, evaluation: Evaluation) -> dict[paper.Place, str]:
    found: dict[paper.Place, str] = {}
    for task, length in table.places():
        result = evaluation.result(task, length)
        if result is not None:
            found[task, length] = f"{result.mean:.1f}"
    tasks = len(table.places()) - 1
    for average in evaluation.averages:
        if table.average and (average.name, average.tasks) == (table.name, tasks):
            found[table.average, None] = f"{average.mean:.1f}"
    return found


def _values(
    scores: dict[paper.Place, float] | dict[paper.Place, str], places: Sequence[paper.Place]
) -> list[str]:
    found = [scores.get(place) for place in places]
    return ["–" if v is None else v if isinstance(v, str) else f"{v:.1f}" for v in found]


def _endings(answered: Scored) -> Table:
    rows: list[Row] = []
    for run, evaluation in answered:
        number = len(evaluation.answers)
        ends = Counter(answer.finish for answer in evaluation.answers)
        cut = [answer.cut_tokens for answer in evaluation.answers if answer.cut_tokens]
        rows.append(
            [
                Cell(run.label, run=run.index),
                f"{number:,}",
                f"{sum(a.prompt_tokens for a in evaluation.answers) / number:,.0f}",
                f"{sum(a.num_tokens for a in evaluation.answers) / number:,.1f}",
                *(f"{ends[name] / number:.0%}" for name in ("eos", "stop", "length")),
                f"{len(cut):,}",
                f"{sum(cut) / len(cut):,.0f}" if cut else "–",
            ]
        )
    columns = [
        "run",
        "rows",
        "prompt tokens, mean",
        "answer tokens, mean",
        "end of text",
        "stop string",
        "budget used up",
        "prompts cut",
        "tokens cut, mean",
    ]
    return Table(columns, rows)


def _some_answers(run: Run, evaluation: Evaluation) -> Details:
    answers = evaluation.answers
    step = max(len(answers) // _ANSWERS, 1)
    rows = [
        [
            answer.id,
            place_name(answer.task, answer.length),
            shortened(visible(answer.output), _TEXT),
            shortened(" | ".join(visible(text) for text in answer.references), _TEXT),
            "–" if answer.score is None else f"{100 * answer.score:.0f}",
        ]
        for answer in answers[::step][:_ANSWERS]
    ]
    table = Table(["row", "task, tokens", "output", "references", "score"], rows, text_columns=4)
    return Details(f"Some answers of {run.label}, at even distances", [table])
