"""Scores of rows that two processes share, for ``run_processes``."""

import torch.distributed as dist

from refine_pl.evaluation import RULES, AnswerScore, MeanScore, TaskScore, TaskScores
from refine_pl.task_records import Answer, TaskRow


def _answer(row):
    question = TaskRow("row", row["task"], "?", tuple(row["answers"]), 8)
    return Answer(question, row["response"], 1, 1, 0, "eos")


def mean_scores(rows):
    """The means over all rows, shared out in several ways."""
    dist.init_process_group("gloo")
    shares = {"unequal": [rows[:5], rows[5:]], "none on one": [rows, []]}
    found = {}
    for name, share in shares.items():
        mine = share[dist.get_rank()]
        one, by_task = TaskScore("qasper"), TaskScores(["qasper", "ruler_squadqa", "lcc"])
        for row in mine:  # a batch each: the number of batches differs too
            by_task.update([row["task"]], [row["response"]], [row["answers"]])
        qasper = [row for row in mine if row["task"] == "qasper"]
        one.update([r["response"] for r in qasper], [r["answers"] for r in qasper])
        answers = AnswerScore()
        answers.update(map(_answer, mine))
        found[name] = {
            "qasper": one.compute().item(),
            "answers": answers.compute().item(),
            **{key: value.item() for key, value in by_task.compute().items()},
        }
        one.reset()
        assert one.num_rows == 0
    found["nothing"] = {"f1": MeanScore(RULES["f1"]).compute().item()}
    dist.destroy_process_group()
    return found
