"""Mean scores as torchmetrics classes, in one process."""

import pickle
import warnings

import pytest
import torch
from torchmetrics import Metric, MetricCollection

from refine_pl import evaluation
from refine_pl.errors import ConfigError, DataError
from refine_pl.evaluation import (
    TASK_RULES,
    AnswerScore,
    MeanScore,
    TaskScore,
    TaskScores,
    score,
)
from refine_pl.task_records import Answer, TaskRow

CLASSES = {
    "NeedleRecall": "niah_single",
    "RulerQA": "ruler_squadqa",
    "QAF1": "qasper",
    "RougeL": "multi_news",
    "Classification": "trec",
    "CodeSimilarity": "lcc",
}
RESPONSES = ["City", "x = 1", "\nthe City of Paris", ""]
REFERENCES = [["City"], ["x = 2", "x"], ["Paris"], ["nothing"]]


def mean(task):
    return sum(map(score, [task] * 4, RESPONSES, REFERENCES)) / 4


@pytest.mark.parametrize("task", sorted(set(TASK_RULES) - {"passage_retrieval_en"}))
def test_the_mean_of_a_task(task):
    metric = TaskScore(task)
    metric.update(RESPONSES[:1], REFERENCES[:1])
    metric.update(RESPONSES[1:], REFERENCES[1:])
    assert metric.compute().item() == pytest.approx(mean(task), abs=1e-15)
    metric = pickle.loads(pickle.dumps(metric)).to("cpu")
    assert metric.compute().item() == pytest.approx(mean(task), abs=1e-15)
    metric.reset()
    assert metric(RESPONSES, REFERENCES).item() == pytest.approx(mean(task), abs=1e-15)


@pytest.mark.parametrize(("name", "task"), CLASSES.items())
def test_classes_of_rules(name, task):
    metric = getattr(evaluation, name)(sync_on_compute=False)
    metric.update(RESPONSES, REFERENCES)
    assert metric.compute().item() == pytest.approx(mean(task), abs=1e-15)
    assert isinstance(metric, Metric)


def test_rules_that_agree_on_a_first_batch_stay_apart_in_a_collection():
    both = MetricCollection([evaluation.RulerQA(), evaluation.RulerQAOfficial()])
    both.update(["Paris"], [["Paris"]])
    both.update(["Rome\nParis"], [["Paris"]])
    assert both.compute() == {"RulerQA": 0.5, "RulerQAOfficial": 1.0}


def test_rows_of_several_tasks():
    metric = TaskScores(["trec", "ruler_squadqa", "lcc", "trec"])
    tasks = ["trec", "ruler_squadqa", "trec", "ruler_squadqa"]
    metric.update(tasks[:3], ["City", "Paris", "Date"], [["City"], ["Paris"], ["Food"]])
    metric.update(tasks[3:], ["\nParis"], [["Paris"]])
    found = {name: value.item() for name, value in metric.compute().items()}
    nan = found.pop("lcc/code_similarity")
    assert nan != nan
    assert found == {
        "trec/classification": 0.5,
        "ruler_squadqa/ruler_qa": 0.5,
        "ruler_squadqa/ruler_qa_official": 1.0,
    }


def answer(task, text, references):
    return Answer(TaskRow("row", task, "?", tuple(references), 8), text, 1, 1, 0, "eos")


def test_answers_of_any_tasks():
    metric = AnswerScore()
    tasks = ["trec", "qasper", "ruler_squadqa", "lcc"]
    answers = list(map(answer, tasks, RESPONSES, REFERENCES))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric.update([])  # a process without rows
        assert metric.compute().isnan()
        metric.update(answers[:1])
        metric.update(answers[1:])
        found = metric.compute().item()
    assert found == pytest.approx(sum(map(score, tasks, RESPONSES, REFERENCES)) / 4, abs=1e-15)
    with pytest.raises(DataError, match="without references"):
        metric.update([*answers, answer("trec", "City", [])])
    assert metric.num_rows == 4


def test_half_precision_of_a_model_leaves_sums_alone():
    metric = torch.nn.ModuleDict({"score": MeanScore(evaluation.RULES["f1"])}).half()["score"]
    for _ in range(3000):
        metric.update(["a b"], [["b c"]])
    assert metric.compute().dtype == torch.float64
    assert metric.compute().item() == pytest.approx(2 / 3)


def test_errors_count_no_row():
    metric, by_task = TaskScore("qasper"), TaskScores(["qasper"])
    with pytest.raises(DataError, match="without references"):
        metric.update(["a", "b"], [["a"], []])
    with pytest.raises(DataError, match="rows differ in number: 2, 1"):
        metric.update(["a", "b"], [["a"]])
    with pytest.raises(DataError, match="lists of texts, not one text"):
        metric.update("a", [["a"]])
    with pytest.raises(ConfigError, match="row of the task 'trec' met a metric without it"):
        by_task.update(["qasper", "trec"], ["a", "b"], [["a"], ["b"]])
    with pytest.raises(ConfigError, match="did you mean 'qasper'"):
        TaskScores(["qaspr"])
    assert metric.num_rows == 0
    assert by_task.num_rows.sum() == 0
