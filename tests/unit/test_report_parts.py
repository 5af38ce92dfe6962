"""Parts of a report that a run of one kind or one run alone needs."""

import pytest
from report_runs import training_run
from torch.utils.tensorboard import SummaryWriter

from refine_pl.figures.drawing import LIGHT
from refine_pl.figures.plots import Interval, Series, curve_figure, interval_figure
from refine_pl.report.reading import open_runs
from refine_pl.report.scalars import read_scalars
from refine_pl.report.sections.overview import overview


def data(kind, **init_args):
    return {"class_path": f"refine_pl.data.{kind}", "init_args": init_args}


TEXT = data("TextData", corpus=data("Files"), sequence_length=1024, batch_size=8)
ROWS = data("TaskData", batch_size=32, training={"easy": data("Needles"), "qa": data("QA")})
STAGES = {
    "mid": {"iterations": 4, "source": "text"},
    "post": {"iterations": 2, "source": "rows"},
}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (TEXT, ("Files", "1024", "8")),
        (ROWS, ("Needles + QA", None, "32")),
        (
            data("StageData", sources={"text": TEXT, "rows": ROWS}),
            ("text: Files, rows: Needles + QA", "text: 1024", "text: 8, rows: 32"),
        ),
        (data("StageData", sources={"a": TEXT, "b": TEXT}), ("Files", "1024", "8")),
        (data("Mine"), ("Mine", None, None)),
        (None, (None, None, None)),
    ],
)
def test_the_card_of_a_run_says_what_it_read(tmp_path, spec, expected):
    config = {"data": spec, "schedule": {"stages": STAGES}}
    training_run(tmp_path / "run", top=config)
    (_, _, card) = overview(open_runs([str(tmp_path / "run")]))
    shown = {row[0]: row[1] for row in card.rows}
    assert shown["stages"] == "mid 4 on text, post 2 on rows"
    assert tuple(shown.get(k) for k in ("data", "sequence length", "batch size")) == expected


def names(axes):
    box = axes.get_legend()
    return [] if box is None else [text.get_text().strip() for text in box.get_texts()]


def test_a_figure_names_its_run_even_if_it_is_the_only_one():
    lines = [Series(i, f"run {i}", [1, 2], [3.0, 2.0]) for i in range(2)]
    assert names(curve_figure(LIGHT, "loss", "nats", lines)) == ["run 0", "run 1"]
    assert names(curve_figure(LIGHT, "loss", "nats", lines[1:])) == ["run 1"]
    scores = [Interval(row, 0, "run 0", 50.0, 40.0, 60.0) for row in range(2)]
    assert names(interval_figure(LIGHT, ["a", "b"], scores, "percent", zero=False)) == ["run 0"]
    difference = [Interval(0, None, "run 0", 5.0, -4.0, 6.0)]
    assert names(interval_figure(LIGHT, ["a"], difference, "0 minus 1", zero=True)) == []


def written(folder, steps, name="a", value=lambda step: step / 10):
    writer = SummaryWriter(str(folder))
    for step in steps:
        writer.add_scalar(name, value(step), step)
    writer.close()
    return max(folder.glob("events*"), key=lambda path: path.stat().st_mtime_ns)


def test_every_step_of_a_long_run_is_kept(tmp_path):
    written(tmp_path, range(12_000))  # more than TensorBoard itself keeps
    scalars = read_scalars(tmp_path)
    steps, values = scalars.curves["a"]
    assert steps == list(range(12_000))
    assert values[-1] == scalars.last("a") == pytest.approx(1199.9)
    assert scalars.times[0] <= scalars.times[1]
    assert (scalars.last("b"), scalars.notes) == (None, [])


def test_a_step_that_was_written_twice_keeps_its_last_value(tmp_path):
    first = written(tmp_path, [1, 2, 3])
    first.rename(tmp_path / "events.out.tfevents.1")
    second = written(tmp_path, [2, 3, 4], value=lambda step: float(-step))
    second.rename(tmp_path / "events.out.tfevents.2")
    steps, values = read_scalars(tmp_path).curves["a"]
    assert steps == [1, 2, 3, 4]
    assert values == [pytest.approx(0.1), -2.0, -3.0, -4.0]


def test_what_stands_before_a_break_is_read(tmp_path):
    file = written(tmp_path, range(100))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    scalars = read_scalars(tmp_path)
    steps, _ = scalars.curves["a"]
    assert steps == list(range(len(steps)))
    assert 30 < len(steps) < 70
    (note,) = scalars.notes
    assert f"of {len(content):,} only: it is damaged, or its run is still writing" in note
