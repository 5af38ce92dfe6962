"""Parts of a report that a run of one kind or one run alone needs."""

import pytest
from report_runs import training_run

from refine_pl.report.drawing import LIGHT
from refine_pl.report.figures import Interval, Series, curve_figure, interval_figure
from refine_pl.report.runs import open_runs
from refine_pl.report.sections.overview import runs_section


def data(kind, **init_args):
    return {"class_path": f"refine_pl.data.{kind}", "init_args": init_args}


TEXT = data("TextData", corpus=data("Files"), sequence_length=1024, batch_size=8)
ROWS = data("TaskData", batch_size=32, training={"easy": data("Needles"), "qa": data("QA")})
SCHEDULE = {
    "class_path": "refine_pl.callbacks.PhaseSchedule",
    "init_args": {
        "phases": [
            {"name": "mid", "iterations": 4, "source": "text"},
            {"name": "post", "iterations": 2, "source": "rows"},
        ]
    },
}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (TEXT, ("Files", "1024", "8")),
        (ROWS, ("Needles + QA", None, "32")),
        (
            data("PhaseData", sources={"text": TEXT, "rows": ROWS}),
            ("text: Files, rows: Needles + QA", "text: 1024", "text: 8, rows: 32"),
        ),
        (data("PhaseData", sources={"a": TEXT, "b": TEXT}), ("Files", "1024", "8")),
        (data("Mine"), ("Mine", None, None)),
        (None, (None, None, None)),
    ],
)
def test_the_card_of_a_run_says_what_it_read(tmp_path, spec, expected):
    config = {"data": spec, "trainer": {"callbacks": [SCHEDULE]}}
    training_run(tmp_path / "run", top=config)
    (_, _, card) = runs_section(open_runs([str(tmp_path / "run")])).blocks
    shown = {row[0]: row[1] for row in card.rows}
    assert shown["phases"] == "mid 4 on text, post 2 on rows"
    assert tuple(shown.get(k) for k in ("data", "sequence length", "batch size")) == expected


def names(figure):
    box = figure.axes[0].get_legend()
    return [] if box is None else [text.get_text().strip() for text in box.get_texts()]


def test_a_figure_names_its_run_even_if_it_is_the_only_one():
    lines = [Series(i, f"run {i}", [1, 2], [3.0, 2.0]) for i in range(2)]
    assert names(curve_figure(LIGHT, "loss", "nats", lines)) == ["run 0", "run 1"]
    assert names(curve_figure(LIGHT, "loss", "nats", lines[1:])) == ["run 1"]
    scores = [Interval(row, 0, "run 0", 50.0, 40.0, 60.0) for row in range(2)]
    assert names(interval_figure(LIGHT, ["a", "b"], scores, "percent", zero=False)) == ["run 0"]
    difference = [Interval(0, None, "run 0", 5.0, -4.0, 6.0)]
    assert names(interval_figure(LIGHT, ["a"], difference, "0 minus 1", zero=True)) == []
