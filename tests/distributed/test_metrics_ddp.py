"""Mean scores of two processes are means over all rows, however the rows are shared out."""

import json
from pathlib import Path

import pytest
from scripts import run_script

SCRIPT = """
import json
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from refine_pl.evaluation import RULES, AnswerScore, MeanScore, TaskScore, TaskScores
from refine_pl.task_records import Answer, TaskRow


def answer(row):
    question = TaskRow("row", row["task"], "?", tuple(row["answers"]), 8)
    return Answer(question, row["response"], 1, 1, 0, "eos")


def work(rank, rows, path):
    dist.init_process_group("gloo", init_method=f"file://{path}.meet", rank=rank, world_size=2)
    shares = {
        "unequal": [rows[:5], rows[5:]],
        "none on one": [rows, []],
    }
    found = {}
    for name, share in shares.items():
        mine = share[rank]
        one, by_task = TaskScore("qasper"), TaskScores(["qasper", "ruler_squadqa", "lcc"])
        for row in mine:  # a batch each: the number of batches differs too
            by_task.update([row["task"]], [row["response"]], [row["answers"]])
        qasper = [row for row in mine if row["task"] == "qasper"]
        one.update([r["response"] for r in qasper], [r["answers"] for r in qasper])
        answers = AnswerScore()
        answers.update(map(answer, mine))
        found[name] = {"qasper": one.compute().item(), "answers": answers.compute().item(),
                       **{key: value.item() for key, value in by_task.compute().items()}}
        one.reset()
        assert one.num_rows == 0
    found["nothing"] = {"f1": MeanScore(RULES["f1"]).compute().item()}
    if rank == 1:
        open(path, "w").write(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    path = sys.argv[1]
    mp.spawn(work, (json.load(open(path + ".rows")), path), nprocs=2)
"""

GOLDEN = Path(__file__).parents[1] / "golden" / "scoring.json"


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    rows = [row for row in json.loads(GOLDEN.read_text()) if row["task"] == "qasper"]
    squad = [("Paris", ["Paris"], 1, 1), ("\nParis", ["Paris"], 0, 1), ("x", ["Paris"], 0, 0)]
    rows += [{"task": "ruler_squadqa", "response": r, "answers": a} for r, a, _, _ in squad]
    path = tmp_path / "found.json"
    Path(f"{path}.rows").write_text(json.dumps(rows))
    run_script(tmp_path / "measure.py", SCRIPT, path)
    found = json.loads(path.read_text())
    scores = [row["score"] for row in rows if row["task"] == "qasper"]
    assert 0 < sum(scores) < len(scores)
    for share in ("unequal", "none on one"):
        means = found[share]
        assert means["qasper"] == pytest.approx(sum(scores) / len(scores), abs=1e-12)
        assert means["answers"] == pytest.approx((sum(scores) + 1) / len(rows), abs=1e-12)
        assert means["qasper/qa_f1"] == pytest.approx(means["qasper"], abs=1e-12)
        assert means["ruler_squadqa/ruler_qa"] == pytest.approx(1 / 3)
        assert means["ruler_squadqa/ruler_qa_official"] == pytest.approx(2 / 3)
        assert means["lcc/code_similarity"] != means["lcc/code_similarity"]  # nan: no row
    assert found["nothing"]["f1"] != found["nothing"]["f1"]
