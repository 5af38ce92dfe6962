"""Mean scores of two processes are means over all rows, however the rows are shared out."""

import json
from pathlib import Path

import pytest
from processes import run_processes
from shared_scores import mean_scores

GOLDEN = Path(__file__).parents[1] / "golden" / "scoring.json"


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_equal_one():
    rows = [row for row in json.loads(GOLDEN.read_text()) if row["task"] == "qasper"]
    squad = [("Paris", ["Paris"], 1, 1), ("\nParis", ["Paris"], 0, 1), ("x", ["Paris"], 0, 0)]
    rows += [{"task": "ruler_squadqa", "response": r, "answers": a} for r, a, _, _ in squad]
    _, found = run_processes(mean_scores, 2, rows)
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
