"""Scores of evaluation runs, beside the paper's where task and length are the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from refine_pl.figures.drawing import Picture
from refine_pl.figures.plots import Interval, interval_figure
from refine_pl.figures.text import shortened, visible
from refine_pl.report import paper
from refine_pl.report.page import Block, Cell, Details, Gallery, Heading, Note, Row, Table
from refine_pl.report.reading import Run
from refine_pl.training.run_folder import Average, Result

_ANSWERS = 6  # of a run
_TEXT = 240  # characters of an answer


def evaluations(runs: Sequence[Run]) -> Iterator[Block]:
    """The scores, the paper's tables, how answers ended, and some answers."""
    scored = [run for run in runs if run.scores.results]
    if scored:
        yield from _scores(scored)
    elif any("evaluation" in run.kinds for run in runs):
        yield Note("No run has scores: there is nothing to compare.")
    for table in paper.TABLES:
        yield from _beside(table, scored)
    answered = [run for run in runs if run.answers]
    if answered:
        yield Heading("How answers ended")
        yield Table(list(_ENDINGS), [_endings(run) for run in answered])
        yield from map(_some_answers, answered)


def place_name(task: str, length: int | None) -> str:
    """A row of a table: the task, with the length of its set if it has one."""
    return task if length is None else f"{task}, {length:,}"


def _places(run: Run) -> list[paper.Place]:
    """Tasks and lengths, in the order of the files."""
    scored = [(result.task, result.length) for result in run.scores.results]
    return list(dict.fromkeys(scored + [(answer.task, answer.length) for answer in run.answers]))


def _scores(scored: Sequence[Run]) -> Iterator[Block]:
    about = scored[0].scores.interval
    method = f" ({about.level:.0%}, {about.method}, {about.resamples:,} resamples)" if about else ""
    yield (
        f"Percent, by the released rule of each task. After each mean its interval{method}: how "
        "much the mean depends on which rows were asked, and on nothing else."
    )
    places = list(dict.fromkeys(place for run in scored for place in _places(run)))
    found = {place: [run.scores.result(*place) for run in scored] for place in places}
    rows: list[Row] = [
        [place_name(*place), *map(_with_interval, results)] for place, results in found.items()
    ]
    for name, tasks in dict.fromkeys((a.name, a.tasks) for r in scored for a in r.scores.averages):
        averages = [run.scores.average(name, tasks) for run in scored]
        rows.append([f"average of {tasks} {name} tasks", *map(_with_interval, averages)])
    columns: Row = ["task, tokens", *(run.name for run in scored)]
    yield Table(columns, rows, separated=frozenset({len(places)}))
    points = [
        Interval(i, run.index, run.label, result.mean, result.low, result.high)
        for i, results in enumerate(found.values())
        for run, result in zip(scored, results, strict=True)
        if result
    ]
    names = [place_name(*place) for place in places]
    alt = "Scores by task and length with their intervals"
    options = {"rows": names, "intervals": points, "x": "score, percent", "zero": False}
    yield Gallery([Picture("scores", alt, interval_figure, options, wide=True)])
    yield from _further_rules(scored)


def _with_interval(result: Result | Average | None) -> Cell | str:
    if result is None:
        return "–"
    detail = f"{result.low:.1f} to {result.high:.1f}, {result.rows:,} rows"
    return Cell(f"{result.mean:.1f}", detail)


def _further_rules(scored: Sequence[Run]) -> Iterator[Block]:
    rows: list[Row] = [
        [place_name(result.task, result.length), result.rule, run.name, _with_interval(result)]
        for run in scored
        for result in run.scores.results
        if result is not run.scores.result(result.task, result.length)
    ]
    if rows:
        table = Table(["task, tokens", "rule", "run", "score"], rows, text_columns=3)
        yield Details("Scores by further rules", [table])


def _beside(table: paper.PaperTable, scored: Sequence[Run]) -> Iterator[Block]:
    """Own rows above the paper's, in the columns that both have."""
    own = [(run, scores) for run in scored if (scores := _own_scores(table, run))]
    places = [place for place in table.places if any(place in scores for _, scores in own)]
    tasks = {task for task, _ in table.places}
    if not places:
        yield from _no_numbers(table, [p for run in scored for p in _places(run) if p[0] in tasks])
        return
    rows: list[Row] = [
        [Cell(run.label, run=run.index, strong=True), "own run", *_values(scores, places)]
        for run, scores in own
    ]
    borders = []
    for model, stages in table.scores.items():
        borders.append(len(rows))
        rows += [
            [model, f"paper: {stage}", *_values(scores, places)] for stage, scores in stages.items()
        ]
    caption = (
        f"{paper.SOURCE}, {table.name}: {table.about}, percent. The paper's rows are other models, "
        "and other rows of the same task; they were copied and not run again."
    )
    columns = ["model", "stage", *(place_name(*place) for place in places)]
    yield Heading(f"Beside the paper: {table.name}")
    yield Table(columns, rows, caption, 2, frozenset(borders))
    for run in scored:
        asked = [answer for answer in run.answers if answer.task in tasks]
        cut = sum(answer.cut_tokens > 0 for answer in asked)
        if cut:
            yield Note(
                f"{run.label} read {cut:,} of {len(asked):,} prompts without their middle, which "
                "exceeded its limit of tokens: this is not the task at its full length."
            )


def _no_numbers(table: paper.PaperTable, asked: Sequence[paper.Place]) -> Iterator[Block]:
    if asked:
        names = "; ".join(place_name(*place) for place in sorted(set(asked), key=str))
        lengths = ", ".join(f"{n:,}" for n in sorted({n for _, n in table.places if n}))
        allowed = f"The paper has {lengths} tokens." if lengths else "Its rows have no length."
        yield Heading(f"Beside the paper: {table.name}")
        yield Note(f"The paper has no numbers for {names}. {allowed}")


def _own_scores(table: paper.PaperTable, run: Run) -> dict[paper.Place, float]:
    results = {place: run.scores.result(*place) for place in table.places}
    found = {place: result.mean for place, result in results.items() if result}
    average = run.scores.average(table.name, len(table.places) - 1)
    return found | ({(paper.AVERAGE, None): average.mean} if average else {})


def _values(scores: dict[paper.Place, float], places: Sequence[paper.Place]) -> list[str]:
    return [f"{scores[place]:.1f}" if place in scores else "–" for place in places]


_ENDINGS = (
    *("run", "rows", "prompt tokens, mean", "answer tokens, mean", "end of text", "stop string"),
    *("budget used up", "prompts cut", "tokens cut, mean"),
)


def _endings(run: Run) -> Row:
    number = len(run.answers)
    ends = Counter(answer.finish for answer in run.answers)
    cut = [answer.cut_tokens for answer in run.answers if answer.cut_tokens]
    return [
        run.name,
        f"{number:,}",
        f"{sum(answer.prompt_tokens for answer in run.answers) / number:,.0f}",
        f"{sum(answer.num_tokens for answer in run.answers) / number:,.1f}",
        *(f"{ends[name] / number:.0%}" for name in ("eos", "stop", "length")),
        f"{len(cut):,}",
        f"{sum(cut) / len(cut):,.0f}" if cut else "–",
    ]


def _some_answers(run: Run) -> Details:
    step = max(len(run.answers) // _ANSWERS, 1)
    rows = [
        [
            answer.id,
            place_name(answer.task, answer.length),
            shortened(visible(answer.output), _TEXT),
            shortened(" | ".join(visible(text) for text in answer.references), _TEXT),
            "–" if answer.score is None else f"{100 * answer.score:.0f}",
        ]
        for answer in run.answers[::step][:_ANSWERS]
    ]
    table = Table(["row", "task, tokens", "output", "references", "score"], rows, text_columns=4)
    return Details(f"Some answers of {run.label}, at even distances", [table])
