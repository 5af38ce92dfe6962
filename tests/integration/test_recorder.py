import json

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from runs import RowsData, every_batch, module, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from refine_pl.callbacks import RolloutRecorder
from refine_pl.callbacks.showing import samples_table
from refine_pl.callbacks.summary import summary_table
from refine_pl.figures.drawing import LIGHT, pixels
from refine_pl.figures.plots import entropy_figure
from refine_pl.figures.text import plain
from refine_pl.rewards import EmbeddingSimilarity, ExactMatch
from refine_pl.training import Schedule, Stage
from refine_pl.training.record_files import drop_later_lines
from refine_pl.training.run_folder import Validation

REWARDS = {"similarity": EmbeddingSimilarity(), "match": ExactMatch(weight=0.5)}


def lines(folder, name="rollouts.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_the_samples_are_those_that_were_trained_on(tmp_path):
    data, model = RowsData(), module(rewards=REWARDS)
    recorder = RolloutRecorder(every_n_iterations=2, num_rows=3, directory=str(tmp_path))
    train(model, data, iterations=4, callbacks=[recorder])
    rows = lines(tmp_path)
    assert [row["iteration"] for row in rows] == [i for i in (1, 2, 4) for _ in range(3 * 2)]
    texts = {f"document {i}": bytes(r.tolist()).decode() for i, r in enumerate(data.training.rows)}
    for row in rows:
        text, position = texts[row["document"]], row["position"]
        assert text[position - 48 if position > 48 else 0 : position] == row["prefix"]
        assert text[position : position + 3] == row["target"]
        assert len(row["rollouts"]) == 2
        for rollout in row["rollouts"]:
            parts = rollout["parts"]
            total = parts["similarity"] + 0.5 * parts["match"]
            assert rollout["reward"] == pytest.approx(total, abs=1e-5)
        assert sum(r["advantage"] for r in row["rollouts"]) == pytest.approx(0, abs=1e-5)


def test_the_entropy_is_written_with_the_positions_of_the_rollouts(tmp_path):
    recorder = RolloutRecorder(every_n_iterations=2, num_rows=3, directory=str(tmp_path))
    train(module(), iterations=4, callbacks=[recorder])
    maps = lines(tmp_path, "entropy.jsonl")
    assert [m["iteration"] for m in maps] == [i for i in (1, 2, 4) for _ in range(3)]
    rows = lines(tmp_path)
    for entropy in maps:
        assert len(entropy["entropy"]) == len(entropy["smoothed"]) == 72
        middle = sum(entropy["entropy"][9:12]) / 3
        assert entropy["smoothed"][10] == pytest.approx(middle, abs=2e-4)
        assert all(value == round(value, 4) for value in entropy["entropy"])
        assert entropy["borders"] == [36]
        assert entropy["scored"] == [position - 1 for position in entropy["positions"]]
        same = [r for r in rows if r["iteration"] == entropy["iteration"]]
        own = [r["position"] for r in same if r["document"] == entropy["document"]]
        assert entropy["positions"] == own


def test_the_first_iteration_of_a_stage_is_written(tmp_path):
    stages = {"a": Stage(2, policy_weight=0.0), "b": Stage(3)}
    recorder = RolloutRecorder(every_n_iterations=100, directory=str(tmp_path))
    train(module(), iterations=99, callbacks=[recorder, Schedule(stages)])
    assert {row["iteration"] for row in lines(tmp_path)} == {3}


def test_table_and_picture_are_in_tensorboard(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="run", version=0)
    recorder = RolloutRecorder(every_n_iterations=2)
    train(module(rewards=REWARDS), iterations=2, callbacks=[recorder], logger=logger)
    events = EventAccumulator(str(tmp_path / "run" / "version_0"))
    events.Reload()
    assert [image.step for image in events.Images("rollouts/entropy")] == [1, 2]
    (first, _) = events.Tensors("rollouts/table/text_summary")
    text = first.tensor_proto.string_val[0].decode()
    row = lines(tmp_path / "run" / "version_0")[0]
    assert f"| {row['position']} | {plain(row['prefix'])} | {plain(row['target'])} |" in text
    assert "| position | prefix | target | rollout | reward | similarity | match |" in text
    scalars = events.Tags()["scalars"]
    assert {"train/loss", "reward/match/mean", "policy/entropy"} <= set(scalars)
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    assert "epoch" not in scalars


def test_a_resumed_run_does_not_write_iterations_twice(tmp_path):
    def recorder():
        return RolloutRecorder(every_n_iterations=1, directory=str(tmp_path / "lines"))

    callbacks = [recorder(), every_batch(tmp_path)]
    train(module(), iterations=4, callbacks=callbacks, enable_checkpointing=True)
    whole = lines(tmp_path / "lines")
    maps = lines(tmp_path / "lines", "entropy.jsonl")
    assert [row["iteration"] for row in maps] == [1, 2, 3, 4]
    assert [row["iteration"] for row in whole] == [1, 1, 2, 2, 3, 3, 4, 4]
    train(module(), iterations=4, callbacks=[recorder()], ckpt_path=tmp_path / "step=4.ckpt")
    assert lines(tmp_path / "lines") == whole
    assert lines(tmp_path / "lines", "entropy.jsonl") == maps


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    file = tmp_path / "rollouts.jsonl"
    file.write_text('{"iteration": 1}\n{"iteration": 3}\n{"iteration": 2}\n{"iterat')
    drop_later_lines(file, 2)
    assert file.read_text() == '{"iteration": 1}\n{"iteration": 2}\n'


def test_separators_inside_a_line_do_not_cut_it(tmp_path):
    file = tmp_path / "rollouts.jsonl"
    line = json.dumps({"iteration": 1, "text": "a\u2028b\x85c"}, ensure_ascii=False) + "\n"
    file.write_text(line, encoding="utf-8")
    drop_later_lines(file, 1)
    assert file.read_text(encoding="utf-8") == line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("  a b ", "␣␣a b␣"),
        ("a\n\tb", "a⏎⇥b"),
        ("a|b", "a&#124;b"),
        ("<b>*x*", "&#60;b&#62;&#42;x&#42;"),
        ("   ", "␣␣␣"),
        ("", ""),
    ],
)
def test_text_is_shown_as_it_is(text, shown):
    assert plain(text) == shown


def test_the_closing_table_has_one_row_for_each_number():
    numbers = {"val/ntp_loss": 2.0, "val/reward": 0.5, "val/reward_match": 0.5, "val/mine": 1.0}
    validations = [
        Validation("before", 0, numbers),
        Validation(None, 3, numbers),
        Validation("after refine", 4, numbers | {"val/accuracy": 0.25}),
    ]
    table = summary_table(validations)
    cells = [list(column.cells) for column in table.columns]
    assert [column.header for column in table.columns] == ["held out", "before", "after refine"]
    assert list(zip(*cells, strict=True)) == [
        ("next-token loss, nats per token", "2.0000", "2.0000"),
        ("accuracy, most likely token", "–", "25.00%"),
        ("reward of rollouts", "0.5000", "0.5000"),
    ]
    unnamed = summary_table([Validation(None, i, numbers) for i in (2, 4, 6)])
    assert [column.header for column in unnamed.columns][1:] == ["iteration 2", "iteration 6"]


class Keep(RolloutRecorder):
    def on_train_batch_end(self, trainer, pl_module, *args):
        self.kept = list(self._samples)
        super().on_train_batch_end(trainer, pl_module, *args)


def test_a_row_without_positions_is_no_crash(tmp_path):
    recorder = Keep(num_rows=4, directory=str(tmp_path))
    data = RowsData()
    data.training.rows = [row[:12] for row in data.training.rows]
    train(module(), data, iterations=1, callbacks=[recorder])
    assert [sample.positions for sample in recorder.kept] == [[]] * 4
    assert samples_table(recorder.kept[0]).startswith("**document ")
    assert recorder.kept[0].entropy.positions == []
    picture = pixels(entropy_figure, LIGHT, data=recorder.kept[0].entropy)
    assert picture.shape == (300, 1000, 4)


def test_the_picture_marks_positions_and_borders(tmp_path):
    recorder = Keep(directory=str(tmp_path))
    train(module(), iterations=1, callbacks=[recorder])
    (sample,) = recorder.kept
    assert len(sample.entropy.entropy) == 72
    assert len(sample.positions) == 2
    picture = pixels(entropy_figure, LIGHT, data=sample.entropy)
    picture = torch.from_numpy(picture[..., :3].copy()).long()
    red = (picture - torch.tensor([214, 39, 40])).abs().sum(-1) < 30
    assert red.sum() > 50
