"""The parts of an evaluation's run folder: lines, card, numbers, progress."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from rich.console import Console
from tiny import delta_net

from refine_pl.backbones.weight_files import weights_hash
from refine_pl.callbacks import ProgressBar
from refine_pl.callbacks.evaluation import refuse_sharding
from refine_pl.callbacks.evaluation_card import differences
from refine_pl.callbacks.evaluation_folder import (
    EvaluationFolder,
    complete_batches,
    next_free_folder,
)
from refine_pl.callbacks.evaluation_scores import summarize, table
from refine_pl.errors import ConfigError, DataError
from refine_pl.evaluation.bootstrap import average_interval, mean_interval
from refine_pl.training.run_folder import ScoreInterval

NAME = "answers.jsonl"


def test_lines_of_several_processes(tmp_path):
    folder = EvaluationFolder(tmp_path, "test")
    for rank in range(3):
        folder.append([{"id": f"{rank}a"}, {"id": f"{rank}b"}], rank)
        folder.append([{"id": f"{rank}c"}], rank)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("answers.jsonl", "answers.rank1.jsonl", "answers.rank2.jsonl")
    ]
    found = folder.lines()
    assert [line["id"] for line in found] == [f"{r}{x}" for r in range(3) for x in "abc"]
    folder.rewrite(reversed(found))
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert [line["id"] for line in folder.lines()] == [f"{r}{x}" for r in (2, 1, 0) for x in "cba"]


def test_lines_survive_anything_a_model_says(tmp_path):
    texts = ["\n\r\t", "\x85 \u2028 \u2029", "\ud800 lone", "\x00", '"\\', "日本 🙂"]
    folder = EvaluationFolder(tmp_path, "test")
    folder.append({"id": str(i), "output": text} for i, text in enumerate(texts))
    assert [line["output"] for line in folder.lines()] == texts
    assert len((tmp_path / NAME).read_text().splitlines()) == len(texts)
    folder.rewrite(folder.lines())
    assert [line["output"] for line in folder.lines()] == texts


def test_damaged_lines(tmp_path):
    folder, file = EvaluationFolder(tmp_path / "new", "test"), tmp_path / "new" / NAME
    assert folder.lines() == []
    folder.append([])
    file.write_text('{"id": "a"}\n{"id": "a", "twice": 1}\n{"id": "b"')
    assert folder.lines() == [{"id": "a"}]  # a last line that was cut off does not count
    file.write_text('{"id": "a"}\n{"id"\n{"id": "b"}\n')
    with pytest.raises(DataError, match=r"line 2 of answers\.jsonl"):
        folder.lines()


def test_folders(tmp_path):
    assert next_free_folder(tmp_path / "none").name == "version_0"
    for name in ("version_0", "version_7", "version_x", "other"):
        (tmp_path / name).mkdir()
    assert next_free_folder(tmp_path).name == "version_8"
    path = tmp_path / "version_0"
    folder = EvaluationFolder(path, "test")
    assert folder.earlier is None
    folder.append([])
    with pytest.raises(ConfigError, match=r"answers\.jsonl of another run"):
        EvaluationFolder(path, "test")
    folder.write_card({"stage": "test"})
    assert EvaluationFolder(path, "test").earlier == {"stage": "test"}
    (path / "card.json").write_text("{")
    with pytest.raises(DataError, match=r"card\.json is not JSON"):
        EvaluationFolder(path, "test")
    with pytest.raises(ConfigError, match="is a file"):
        EvaluationFolder(path / NAME, "test")


def test_complete_batches():
    ids = list("abcdefg")
    assert complete_batches(ids, set("abcd"), 3) == set("abc")
    assert complete_batches(ids, set("bdefg"), 3) == set("defg")
    assert complete_batches(ids, set("bd"), 1) == set("bd")
    assert complete_batches(ids, set(), 2) == set()


def test_weights_hash_is_of_the_values():
    policy = delta_net(dtype=torch.float32)
    assert weights_hash(policy) == weights_hash(delta_net(dtype=torch.float32))
    rounded = delta_net(dtype=torch.bfloat16)
    assert weights_hash(rounded) == weights_hash(delta_net(dtype=torch.bfloat16).float())
    assert weights_hash(rounded) != weights_hash(policy)
    found = weights_hash(policy)
    with torch.no_grad():
        policy.lm_head.weight[-1, -1] += 1e-7
    assert weights_hash(policy) != found


def test_differences_are_named():
    card = {
        "stage": "test",
        "model": {"weights_hash": "a", "source": "here"},
        "decoding": {"decoding": "sample", "stop": ["\n"]},
        "test_time_training": {"mode": "sft"},
    }
    assert differences(card, card) == []
    other = {
        "stage": "test",
        "model": {"weights_hash": "b", "source": "there"},
        "decoding": {"decoding": "sample", "stop": [], "top_k": 5},
        "test_time_training": None,
    }
    assert differences(card, other) == [
        "model.weights_hash was a, is b",
        "decoding.stop was ['\\n'], is []",
        "decoding.top_k was absent, is 5",
        "test_time_training was given, is none",
    ]
    assert differences(card, {"stage": "predict"}) == ["stage was test, is predict"]


def line(task, score, length=None, **scores):
    return {"task": task, "length": length, "score": score, "scores": scores}


def test_summary():
    lines = [line("niah_single", float(i < 6), 4096) for i in range(8)]
    lines += [line("niah_single", float(i < 2), 8192) for i in range(8)]
    lines += [line("ruler_squadqa", 0.0, 4096, ruler_qa_official=1.0)] * 3
    summary = summarize(lines, resamples=500)
    found = [(r.task, r.length, r.rule, r.rows, r.mean) for r in summary.results]
    assert found == [
        ("niah_single", 4096, "needle_recall", 8, 75.0),
        ("niah_single", 8192, "needle_recall", 8, 25.0),
        ("ruler_squadqa", 4096, "ruler_qa", 3, 0.0),
        ("ruler_squadqa", 4096, "ruler_qa_official", 3, 100.0),
    ]
    wanted = mean_interval([1.0] * 6 + [0.0] * 2, resamples=500).percent()
    assert (summary.results[0].low, summary.results[0].high) == (wanted.low, wanted.high)
    assert summary.averages == []
    assert summary.interval == ScoreInterval(0.95, 500, "percentile bootstrap over rows")
    shown = io.StringIO()
    Console(file=shown, width=100).print(table(summary))
    text = shown.getvalue()
    assert text.count("niah_single") == 2
    assert text.count("ruler_squadqa") == 1
    assert "4,096" in text
    assert "75.0" in text


def test_the_average_counts_every_task_alike():
    lines = [line("qasper", 1.0)] * 30 + [line("trec", 0.0)] * 10 + [line("niah_single", 1.0)] * 10
    (average,) = summarize(lines, resamples=200).averages
    assert (average.tasks, average.rows, average.mean) == (2, 40, 50.0)
    assert (average.low, average.high) == (50.0, 50.0)  # rows are drawn inside their task


def test_average_interval():
    one = average_interval([[0.0, 1.0, 1.0, 0.0]], resamples=2000)
    assert one == mean_interval([0.0, 1.0, 1.0, 0.0], resamples=2000)
    draw = np.random.default_rng(0)
    groups = [draw.random(200) < p for p in (0.2, 0.8)]
    found = average_interval([g.astype(float) for g in groups])
    assert found.mean == pytest.approx(np.mean([g.mean() for g in groups]))
    error = np.sqrt(sum(g.mean() * (1 - g.mean()) / 200 for g in groups)) / 2
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    with pytest.raises(DataError, match="no groups"):
        average_interval([])


def test_sharded_models_are_refused():
    refuse_sharding(SingleDeviceStrategy("cpu"), 1)
    refuse_sharding(ModelParallelStrategy(), 1)
    refuse_sharding(DDPStrategy(), 4)
    with pytest.raises(ConfigError, match="ModelParallelStrategy gives each of 2 processes"):
        refuse_sharding(ModelParallelStrategy(), 2)


def answers(rows, tokens):
    return [SimpleNamespace(num_tokens=tokens // rows)] * rows


def test_progress_lines(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = ProgressBar(line_every_s=10.0)
    data = SimpleNamespace(task_rows=range(12), skip=range(2))
    trainer = SimpleNamespace(datamodule=data, world_size=2)
    progress.on_test_start(trainer, None)
    for seconds in (4, 4, 4, 4):
        now[0] += seconds
        progress.on_test_batch_end(trainer, None, answers(1, 30))
    assert capsys.readouterr().out == "answered 6/10  tokens/s 15  0:08 left\n"
    now[0] += 4
    progress.on_test_batch_end(trainer, None, answers(3, 30))  # the other process had fewer
    assert capsys.readouterr().out == "answered 10/10  tokens/s 15\n"
    progress.on_test_end(trainer, None)


def test_progress_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich
    progress = ProgressBar()
    trainer = SimpleNamespace(datamodule=SimpleNamespace(task_rows=range(4)), world_size=1)
    for start in (progress.on_test_start, progress.on_predict_start):
        start(trainer, None)
        progress.on_predict_batch_end(trainer, None, answers(4, 100))
        progress.on_predict_end(trainer, None)
        shown = capsys.readouterr().out
        assert "4/4" in shown
        assert "tokens/s" in shown


def test_a_line_without_a_score_is_named():
    line = {"id": "row 3", "task": "trec", "length": None, "scores": {}}
    with pytest.raises(DataError, match="'row 3' has no score"):
        summarize([line])
